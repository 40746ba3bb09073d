"""Time models on complete images, from the file to the metrics, stage by stage."""
