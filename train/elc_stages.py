"""From one of ELC's four stages of training to the next."""

from __future__ import annotations

import dataclasses

from models.elc import ELC
from models.io.errors import UserError
from models.tasks import classifier as classifiers
from transforms.networks import cheng


def following(before: ELC, stage: str, tail: classifiers.Classifier | None = None, **options) -> ELC:
    """A codec of a stage, to be trained, that begins with the weights of one of that stage or the one before.

    What is new of stage "classification" is the feature transform, and the tail of the classifier is its own; the
    stages of the enhanced decoder, and its last layer, begin as the decoder's.

    Args:
      before: with its training variables.
      tail: the whole classifier, whose tail is taken; stage "classification" needs it, goes on with another.
      options: lmbda, lambda_class and weights, as of `ELC`.

    Raises:
      UserError: the classifier is of another architecture than that of earlier training in this stage.
    """
    labels, config = before.labels, before.config
    if stage == "classification" and tail is not None:
        if before.stage != "base" and tail.architecture != config.classifier:
            raise UserError(
                f"the classifier is {classifiers.described(tail.architecture)}, and the codec is made for "
                f"{classifiers.described(config.classifier)}"
            )
        labels, config = tail.labels, dataclasses.replace(config, classifier=tail.architecture)
    codec = ELC(config, stage, labels=labels, **options)
    codec.build_variables(training=True)
    mine, values = codec.named_variables(), before.named_variables()
    if codec.enhances and not before.enhances:
        for name, value in list(values.items()):
            path = name.split("/")  # synthesis/layers/N/...
            if path[0] == "synthesis" and int(path[2]) < cheng.STAGE_ENDS[-1]:
                values["/".join(["synthesis_stages", *path[1:]])] = value
            elif path[0] == "synthesis":
                values["/".join(["enhancement/output_conv", *path[3:]])] = value
    if stage == "classification" and tail is not None:
        values |= {
            name.replace("tail/", "classifier/", 1): value
            for name, value in tail.named_variables().items()
            if name.startswith("tail/")
        }
    for name, variable in mine.items():
        if name in values:
            variable.assign(values[name])
    return codec
