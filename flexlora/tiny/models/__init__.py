"""Small relatives of the backbones, one file for each `model.kind`: `tiny` (encoders), `tiny_llama`, `tiny_vit`,
`tiny_calculator` (GSM8K), `tiny_coder` (HumanEval).
"""
