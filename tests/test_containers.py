"""The container images name what this version of the zoo needs."""

import re
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
CONTAINERS = ROOT / "res" / "containers"


def base_image(name: str) -> str:
    return re.search(r"^FROM (\S+)", (CONTAINERS / name).read_text(), re.MULTILINE)[1]


def test_workers_have_the_beam_of_the_requirements():
    (beam,) = re.findall(r"^apache-beam==(\S+)", (ROOT / "requirements-beam.txt").read_text(), re.MULTILINE)
    assert base_image("beam.Dockerfile") == f"apache/beam_python3.11_sdk:{beam}"


def test_the_server_is_that_of_the_page():
    page = (ROOT / "res" / "doc" / "serving.md").read_text()
    assert f"MODEL_NAME=elic {base_image('serving.Dockerfile')}\n" in page


def test_what_is_copied_into_an_image_is_there():
    text = (CONTAINERS / "beam.Dockerfile").read_text()
    copied = [name for line in re.findall(r"^COPY (.*) \S+$", text, re.MULTILINE) for name in line.split()]
    assert len(copied) == 3 and all((ROOT / name).exists() for name in copied)
    ignored = (ROOT / ".dockerignore").read_text().split()
    assert "res" not in ignored and "requirements.txt" not in ignored
