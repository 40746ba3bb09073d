"""Explain detections, see ``embedmask_mmdet/cli/explain.py``."""

from embedmask_mmdet.cli.explain import main

if __name__ == '__main__':
    main()
