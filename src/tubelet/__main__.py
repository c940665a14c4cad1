"""``python -m tubelet`` is ``tubelet``; under torchrun: ``torchrun --nproc-per-node 2 -m tubelet pretrain ...``."""

from tubelet.cli import main

if __name__ == "__main__":
    main()
