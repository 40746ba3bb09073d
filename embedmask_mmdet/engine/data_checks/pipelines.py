"""Find augmentations that move images and boxes, but not masks."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator

from embedmask_mmdet.engine.data_checks.findings import Finding, error

INSTEAD = dict(
    RandomShift='TranslateX and TranslateY, or RandomCrop',
    Mosaic='CachedMosaic',
    MixUp='CopyPaste',
    RandomAffine='Rotate, ShearX, ShearY, TranslateX and TranslateY',
    RandomCenterCropPad='RandomCrop and Pad',
    CenterCrop='RandomCrop',
    BatchSyncRandomResize='RandomChoiceResize in the pipeline of train_dataloader',
    BatchResize='Resize in the pipeline of train_dataloader',
)
BATCH_AUGMENTS = 'model.data_preprocessor.batch_augments'


def name_type(part: object) -> str:
    """Return the name of the type of a transform."""
    return type(part).__name__


def flatten_transforms(transforms: Iterable) -> Iterator[Callable]:
    """Yield transforms, and those inside wrappers such as ``RandomChoice``."""
    for transform in transforms:
        if isinstance(transform, (list, tuple)):
            yield from flatten_transforms(transform)
        else:
            yield transform
            yield from flatten_transforms(getattr(transform, 'transforms', None) or ())


def list_transforms(dataset: object) -> list[Callable]:
    """List the transforms of a dataset or a wrapper, without those of wrapped datasets."""
    pipeline = getattr(dataset, 'pipeline', None) or ()
    return list(flatten_transforms(getattr(pipeline, 'transforms', pipeline)))


def list_all_transforms(dataset: object) -> list[Callable]:
    """List the transforms of a dataset and of all datasets that it wraps."""
    inner = getattr(dataset, 'datasets', None) or [getattr(dataset, 'dataset', None)]
    wrapped = [transform for each in inner if each is not None for transform in list_all_transforms(each)]
    return wrapped + list_transforms(dataset)


def find_moves_without_masks(names: Iterable[str], where: str) -> Iterator[Finding]:
    """Find parts that leave masks where they were.

    Args:
        names: Types of transforms or batch augmentations.
        where: Key of the config, for messages.
    """
    for name in dict.fromkeys(names):
        if name in INSTEAD:
            yield error(
                f'{name} in {where} moves images and boxes, but not masks, so masks would be wrong. Use '
                f'{INSTEAD[name]} instead.'
            )


def find_pipeline_problems(dataset: object) -> Iterator[Finding]:
    """Check the transforms of a dataset or wrapper."""
    yield from find_moves_without_masks(map(name_type, list_all_transforms(dataset)), 'a pipeline')


def find_loading_without_masks(dataset: object) -> Iterator[Finding]:
    """Check that the pipeline of a training dataset, without wrappers, loads masks."""
    loads = [transform for transform in list_transforms(dataset) if hasattr(transform, 'with_mask')]
    if loads and not getattr(dataset, 'test_mode', False) and not any(load.with_mask for load in loads):
        yield error(
            'The pipeline of the training data loads no masks. Set with_mask=True in LoadAnnotations of '
            'train_dataloader.dataset.pipeline.'
        )


def find_batch_augment_problems(data_preprocessor: object) -> Iterator[Finding]:
    """Check the batch augmentations of a model's data preprocessor."""
    augments = getattr(data_preprocessor, 'batch_augments', None) or ()
    yield from find_moves_without_masks(map(name_type, augments), BATCH_AUGMENTS)
