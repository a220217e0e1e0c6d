"""``python -m stare_lit`` is ``stare``."""

from stare_lit.cli.main import main

if __name__ == "__main__":
    main()
