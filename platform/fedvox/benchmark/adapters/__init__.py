"""Algorithms of other origins under one small contract: a folder of images in, a folder of label maps out.

    kind            model                                                                   file
    fedvox          releases of our own training, one or an ensemble                        fedvox_release
    monai           any network class of MONAI with a state dict                            monai_network
    monai-bundle    a MONAI bundle, as the model zoo has them                               monai_bundle
    nnunet          a folder of nnU-Net v2's training                                       nnunet_model

A submission names one (`adapter: {kind: nnunet, model: …}`) in place of a command. `contract` says what an adapter is,
`launch` turns it into a command that runs in the submission's sandbox like any other: models are other people's files,
and checkpoints may hold programs. A program of one's own needs no adapter: `command` and `container` are for that.
"""
