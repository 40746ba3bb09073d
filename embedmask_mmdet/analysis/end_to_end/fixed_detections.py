"""Make models detect the same number of objects in each image, whatever their weights are."""

from __future__ import annotations

import inspect

import torch
from mmengine.config import Config
from mmengine.structures import InstanceData
from torch import Tensor, nn

from embedmask_mmdet.analysis.configs import walk_dicts
from embedmask_mmdet.analysis.end_to_end.stages import UNTIMED, StageClock, find_attribute
from embedmask_mmdet.analysis.random_boxes import SHORT_SIDE, draw_box_sides

CANDIDATES = 10  # class scores above the threshold per detection; NMS removes some of them
CLASSIFIERS = {'conv_cls', 'fc_cls', 'rtm_cls'}


def keep_all_candidates(cfg: Config) -> None:
    """Disable the filters of a model's config that remove detections because of untrained weights.

    Boxes of initial weights may have no extent, which ``min_bbox_size`` would remove, and scores so low that soft-NMS
    would remove them.
    """
    for part in walk_dicts(cfg.model):
        if 'score_thr' in part and 'min_bbox_size' in part:
            part['min_bbox_size'] = -1
        if part.get('type') == 'soft_nms':
            part['min_score'] = 0.0


def find_class_head(model: nn.Module) -> nn.Module:
    """Return the head of a model that turns class scores into detections."""
    paths = ('roi_head.bbox_head', 'bbox_head', 'mask_head')
    return next(head for head in (find_attribute(model, path) for path in paths) if head)


class FixedDetections:
    """Makes a model detect the same number of objects in each image, with boxes of realistic sizes.

    The score threshold is set so that enough class scores pass it. Boxes keep their centers and get random sizes.

    Args:
        model: A model whose config went through :func:`keep_all_candidates`, and whose stages are watched already.
        clock: Clock of the stages. It does not time what is done here.
    """

    def __init__(self, model: nn.Module, clock: StageClock) -> None:
        self.clock = clock
        self.num_detections = 0
        self.logits: list[Tensor] = []
        self.test_cfgs = [
            module.test_cfg for module in model.modules() if 'score_thr' in (find_attribute(module, 'test_cfg') or ())
        ]
        self.head = find_class_head(model)
        for name, module in self.head.named_modules():
            if CLASSIFIERS & set(name.split('.')):
                module.register_forward_hook(lambda module, args, output: self.logits.append(output))
        self.predict_by_feat = self.head.predict_by_feat
        self.head.predict_by_feat = self._predict_by_feat

    def set_number(self, num_detections: int) -> None:
        """Set the number of detections in each image from now on."""
        self.num_detections = num_detections
        for test_cfg in self.test_cfgs:
            test_cfg.update(max_per_img=num_detections)
            if 'filter_thr' in test_cfg:  # SOLO's threshold after NMS
                test_cfg.update(filter_thr=0.0)

    def _predict_by_feat(self, *args, **kwargs) -> list[InstanceData]:
        with self.clock.run_stage(UNTIMED):
            # Detectors differ in which arguments they name.
            arguments = inspect.signature(self.predict_by_feat).bind(*args, **kwargs).arguments
            img_metas = arguments['batch_img_metas']
            threshold = self._find_threshold(len(img_metas))
            for test_cfg in self.test_cfgs:
                test_cfg.update(score_thr=threshold)
        results_list = self.predict_by_feat(*args, **kwargs)
        with self.clock.run_stage(UNTIMED):
            for results, img_meta in zip(results_list, img_metas):
                results.bboxes = resize_boxes(results.bboxes, img_meta['img_shape'][:2])
        return results_list

    def _find_threshold(self, num_imgs: int) -> float:
        if self.head.loss_cls.use_sigmoid:
            scores = [logits.sigmoid().flatten() for logits in self.logits]
        else:
            # Softmax over classes and background, which comes last.
            channels = self.head.num_classes + 1
            scores = [logits.unflatten(1, (-1, channels)).softmax(2)[:, :, :-1].flatten() for logits in self.logits]
        self.logits.clear()
        scores, needed = torch.cat(scores), num_imgs * self.num_detections * CANDIDATES
        threshold = scores.topk(min(needed + 1, len(scores))).values[-1]
        if (scores > threshold).sum() < min(needed, len(scores) - 1):
            # Initial weights may give equal scores everywhere; all must pass then, and the best of them are taken.
            threshold = torch.nextafter(threshold, threshold.new_zeros(()))
            for test_cfg in self.test_cfgs:
                test_cfg.update(nms_pre=self.num_detections * CANDIDATES)
        return threshold.item()


def resize_boxes(bboxes: Tensor, img_shape: tuple[int, int]) -> Tensor:
    """Give boxes ``(N, 4)`` random sizes around their centers, and clip them to the image."""
    scale = min(img_shape) / SHORT_SIDE
    half = draw_box_sides(len(bboxes), torch.Generator().manual_seed(0)).to(bboxes) * scale / 2
    centers = (bboxes[:, :2] + bboxes[:, 2:]) / 2
    size = bboxes.new_tensor([img_shape[1], img_shape[0]] * 2)
    return torch.cat([centers - half, centers + half], dim=1).clamp(min=0).minimum(size)
