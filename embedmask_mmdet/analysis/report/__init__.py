"""One self-contained HTML page about a model's mistakes, or about a data set.

``data`` reads annotations and detections, ``errors`` sorts mistakes, ``evaluation`` and ``costs`` say what they cost,
``suspicions`` finds labels that are probably wrong, and ``analysis`` does all of these. ``crops``, ``charts`` and
``html`` draw; ``model_page`` and ``data_page`` put a page together.
"""
