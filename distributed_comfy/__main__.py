"""``python -m distributed_comfy``: the command line."""
from distributed_comfy.cli.main import main

if __name__ == "__main__":
    main()
