"""From noise to latents: noise schedule, solvers, guidance, and the tokenizer that prompts go through.

Nothing here needs torch: the arithmetic works on whatever array the model takes and gives (torch tensors, NumPy
arrays), so that a device without torch samples with the same code.
"""
