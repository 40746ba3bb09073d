"""Loading of masks in pipelines, datasets that ``tools/dataset_converters`` writes, and how to write COCO's format."""
