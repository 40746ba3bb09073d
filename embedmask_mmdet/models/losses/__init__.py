"""Mask losses: each compares log-probabilities with the target that it makes of the masks."""

from embedmask_mmdet.models.losses.dice_cross_entropy import DiceCrossEntropyLoss
from embedmask_mmdet.models.losses.log_prob_loss import SURELY_OUTSIDE, LogProbLoss
from embedmask_mmdet.models.losses.lovasz_hinge import LovaszHingeLoss

__all__ = ['SURELY_OUTSIDE', 'DiceCrossEntropyLoss', 'LogProbLoss', 'LovaszHingeLoss']
