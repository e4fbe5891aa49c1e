# make demo   compress and decompress a photograph, and show the two side by side
# make test   lint and tests
# make lint   lint alone: style, container images, and which module may import which (the latter from Python 3.10 on)
# make docs   pages of all modules, classes and functions, from their docstrings: build/docs/index.html
# make report   the curve of the README, from the figures in res/eval
# make jax    an environment for what runs outside TensorFlow (train/pjrt/run.py): .venv-jax; its tests are skipped
#             without one
# make clean  remove the virtual environment and whatever else was made
#
# All of them make the virtual environment .venv first where it is missing or older than the requirements.
# A Python 3.9 to 3.11 is looked for; `make demo PYTHON=/path/to/python3.10` names one. `make test PYTEST="-k images"`
# passes arguments to pytest.

.PHONY: demo test lint docs report jax clean
.DEFAULT_GOAL := demo
.DELETE_ON_ERROR:

VENV := .venv
PYTEST ?= -n 2 --dist loadfile --no-loadscope-reorder
CANDIDATES := $(or $(PYTHON),python3.11 python3.10 python3.9 python3 python)

demo: $(VENV)/.installed
	$(VENV)/bin/python -m eval.demo

test: lint
	$(VENV)/bin/python -m pytest $(PYTEST)

lint: $(VENV)/.installed-dev
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/hadolint res/containers/*.Dockerfile
	test ! -x $(VENV)/bin/lint-imports || $(VENV)/bin/lint-imports --no-logo --no-cache

# pdoc warns of modules that need Apache Beam, and of types that are imported for type checkers alone.
docs: $(VENV)/.installed-dev
	PYTHONWARNINGS=ignore $(VENV)/bin/pdoc --docformat google --no-show-source -o build/docs models transforms train eval \
	  '!models.app.beam.*'

report: $(VENV)/.installed-dev
	$(VENV)/bin/python -m eval.studies.kodak_curve -o res/doc/kodak.png

jax: .venv-jax/.installed

clean:
	rm -rf $(VENV) .venv-jax demo build .pytest_cache .ruff_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

# Each stamp is written last, so an installation that was interrupted is begun again. A virtual environment cannot be
# brought up to date in place with certainty: when the requirements change it is made anew.
$(VENV)/.installed: requirements.txt pyproject.toml
	@python=$$($(FIND_PYTHON)) || exit 1; \
	  echo "Making $(VENV) with $$python ($$("$$python" --version 2>&1)); TensorFlow is some 600 MB to download."; \
	  rm -rf $(VENV) && "$$python" -m venv $(VENV)
	$(VENV)/bin/python -m pip install --disable-pip-version-check -r requirements.txt
	touch $@

$(VENV)/.installed-dev: requirements-dev.txt $(VENV)/.installed
	$(VENV)/bin/python -m pip install --disable-pip-version-check -r requirements-dev.txt
	touch $@

# TensorFlow 2.14 and a current JAX cannot share an environment. JAX wants 3.11 or later, where it is to be had.
.venv-jax/.installed: requirements-jax.txt
	@for python in $(JAX_PYTHON) python3.12 python3.13 python3.11; do \
	  if "$$python" -c 'import sys, venv, ensurepip; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then \
	    rm -rf .venv-jax && "$$python" -m venv .venv-jax && .venv-jax/bin/python -m pip install \
	      --disable-pip-version-check -r requirements-jax.txt && touch $@; exit $$?; \
	  fi; \
	done; echo "JAX needs Python 3.11 or later with its venv module; name one: make jax JAX_PYTHON=…" >&2; exit 1

# Prints the first candidate that is a Python 3.9 to 3.11 and can make virtual environments. Being there is not enough:
# a version manager's shim is there for a Python that is not.
define FIND_PYTHON
found=; \
for candidate in $(CANDIDATES); do \
  version=$$("$$candidate" -c 'import sys; print("%d.%d" % sys.version_info[:2])' 2>/dev/null) || continue; \
  case "$$version" in \
    3.9|3.10|3.11) \
      if "$$candidate" -c 'import venv, ensurepip' 2>/dev/null; then echo "$$candidate"; exit 0; fi; \
      found="$$found $$candidate (Python $$version without its venv module: try 'apt install python$$version-venv')" ;; \
    *) found="$$found $$candidate (Python $$version)" ;; \
  esac; \
done; \
echo "Cannot make $(VENV): Python 3.9, 3.10 or 3.11 with its venv module is needed: TensorFlow 2.14 has no other." >&2; \
echo "Looked for: $(CANDIDATES). Found:$${found:- none of them}." >&2; \
echo "Install one, or name one: make PYTHON=/path/to/python3.11" >&2; \
exit 1
endef
