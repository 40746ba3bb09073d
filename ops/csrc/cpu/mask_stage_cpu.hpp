#pragma once

#include <vector>

#include "../common/mask_stage.hpp"

namespace embedmask {

// Compute masks. `bboxes`: (N, 4) in input pixels; `cell`: side of a cell in input pixels; `masks`: (N, pixels of rows,
// pixels of cols), which must be 0 and become 0 or 1.
void instance_masks_cpu(const MaskStage& stage, const double* bboxes, double cell, uint8_t* masks);

// Compute the same masks as N COCO RLE strings.
std::vector<std::vector<uint8_t>> instance_rles_cpu(const MaskStage& stage, const double* bboxes, double cell);

}  // namespace embedmask
