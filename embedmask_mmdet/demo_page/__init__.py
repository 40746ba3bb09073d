"""A web page to try a model on images: ``embedmask demo``.

``uploads`` reads images of strangers, ``onnx_model`` and ``torch_model`` detect, ``picture`` draws and ``downloads``
makes files. Only ``page`` and ``server`` need Gradio, and only ``torch_model`` needs PyTorch.
"""
