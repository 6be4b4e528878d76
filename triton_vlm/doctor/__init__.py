"""`triton-vlm doctor`: what this machine can do, and which limits of a model fit into its memory."""
