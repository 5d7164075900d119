"""Small relatives of backbones. One file for each `model.kind`: `tiny` (encoders), `tiny_llama`, `tiny_vit`."""
