# TensorFlow Serving with an exported model baked in (res/doc/serving.md). Build it in the folder of the export:
#   python models/elic.py export /models/elic
#   docker build -f res/containers/serving.Dockerfile -t REGISTRY/elic /models/elic
FROM tensorflow/serving:2.14.1
COPY . /models/elic
ENV MODEL_NAME=elic
