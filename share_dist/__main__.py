"""`python -m share_dist` is `share-dist`."""

from share_dist.cli import main

if __name__ == "__main__":
    main()
