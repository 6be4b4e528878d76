"""`python -m triton_vlm` is the console script `triton-vlm`."""

from triton_vlm.cli import main

if __name__ == "__main__":
    main()
