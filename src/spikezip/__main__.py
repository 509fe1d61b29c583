"""``python -m spikezip``: the command line, also under ``accelerate launch -m spikezip``."""

from spikezip.cli import main

if __name__ == "__main__":
    main()
