"""Released models for programs that are not Fedvox: ONNX, and MONAI bundles.

    onnx_model      model.onnx with a free batch axis, checked in ONNX Runtime against PyTorch
    monai_bundle    a folder that `python -m monai.bundle run` segments images with
    network         the released network, ready to be exported

Import the modules themselves: this package imports none of them.
"""
