"""Show a model on a web page, see ``embedmask_mmdet/cli/demo.py``."""

from embedmask_mmdet.cli.demo import main

if __name__ == '__main__':
    main()
