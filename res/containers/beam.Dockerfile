# Workers of Apache Beam for `python -m models.app.beam` (res/doc/scale.md). Build it in the root of the repository:
#   docker build -f res/containers/beam.Dockerfile -t REGISTRY/lic-zoo-beam .
FROM apache/beam_python3.11_sdk:2.71.0
WORKDIR /opt/lic-zoo
COPY requirements.txt requirements-beam.txt ./
RUN pip install --no-cache-dir -r requirements-beam.txt
COPY . .
# Workers import `models` from here, wherever the runner starts them.
RUN pip install --no-cache-dir --no-deps -e .
