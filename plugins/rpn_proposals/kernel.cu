// RpnProposals: the RPN's maps to the best R rois, all levels and images at once. The rule is README.md's.
//
// B images, L levels, A anchors per cell, H x W cells of a level, N = min(pre_nms_top_n, H W A) candidates of a level,
// R = post_nms_top_n. Ref: Ren et al., Faster R-CNN (2015), section 3.3.
//
// Precision: logits and deltas are float32 or float16 and become float32 on reading; all arithmetic is float32. Logits
// are ranked as they are; sigmoid serves the score threshold only.
//
// Four launches, each with all levels and images in grid.x:
//   selectInChunks   512 threads per chunk of at most 8192 logits of a large level: its best, roughly  select.h
//   rankAndDecode    1024 threads per level and image: sort, decode, clip, drop       rank_level.h, rank_and_decode.h
//   suppressionMask  128 threads per pair of tiles of 64 boxes: who suppresses whom;
//                    others count better boxes of other levels                         suppress.h, count_better.h
//   scanAndMerge     512 threads per level and image: NMS, and the levels' rois in order   scan_and_merge.h, merge.h
// No launch of the first where all levels are small. With at most 256 candidates per level, rankAndDecode and
// scanAndMerge have 256 threads: less to wait for at barriers; with more than 1024, scanAndMerge has 1024.
#include "rpn_proposals/kernel.h"

#include "common/check.h"
#include "rpn_proposals/rank_and_decode.h"
#include "rpn_proposals/scan_and_merge.h"
#include "rpn_proposals/suppress.h"

namespace edgercnn::rpn_proposals {
namespace {

constexpr int kRoiLimit = 1 << 24;               // post_nms_top_n
constexpr long long kMostBlocks = 0x7fffffff;  // of one launch

const char* checkMaps(const RpnProposals& op) {
    if (op.batch < 0) return refuse("batch is %d: expected 0 or more.", op.batch);
    if (op.levels < 1 || op.levels > kMaxLevels)
        return refuse("levels is %d: expected 1 to %d.", op.levels, kMaxLevels);
    if (op.anchors < 1 || op.anchors > kMaxAnchors / op.levels)
        return refuse("anchors is %d: expected 1 to %d with %d levels.", op.anchors, kMaxAnchors / op.levels,
                      op.levels);
    if (op.type != kFloat32 && op.type != kFloat16)
        return refuse("type is %d: expected %d (float32) or %d (float16).", op.type, kFloat32, kFloat16);
    if (op.layout != kNCHW && op.layout != kNHWC)
        return refuse("layout is %d: expected %d (NCHW) or %d (NHWC).", op.layout, kNCHW, kNHWC);
    if (op.layout == kNHWC && op.objectness_pitch < op.anchors)
        return refuse("objectness_pitch is %d: expected %d (anchors) or more.", op.objectness_pitch, op.anchors);
    if (op.layout == kNHWC && op.deltas_pitch < 4 * op.anchors)
        return refuse("deltas_pitch is %d: expected %d (4 anchors) or more.", op.deltas_pitch, 4 * op.anchors);
    for (int i = 0; i < 4 * op.levels * op.anchors; ++i) {
        if (!isfinite(op.base_anchors[i]))
            return refuse("base_anchors[%d] is %g: expected a finite number.", i, op.base_anchors[i]);
    }
    return nullptr;
}

const char* checkLevel(const RpnProposals& op, int i) {
    const long long height = op.height[i], width = op.width[i], stride_y = op.stride_y[i], stride_x = op.stride_x[i];
    if (height < 1 || width < 1 || height * width > kLogitLimit / op.anchors)
        return refuse("level %d has height %lld and width %lld: expected 1 or more, and at most %d logits.", i, height,
                      width, kLogitLimit);
    if (stride_y < 0 || stride_x < 0 || stride_y * height > kLogitLimit || stride_x * width > kLogitLimit)
        return refuse("level %d has stride_y %lld and stride_x %lld: expected 0 or more, and at most %d px in all.", i,
                      stride_y, stride_x, kLogitLimit);
    if (min(height * width * op.anchors, static_cast<long long>(op.pre_nms_top_n)) > kCandidateLimit)
        return refuse("pre_nms_top_n is %d: expected at most %d for a level of %lld logits.", op.pre_nms_top_n,
                      kCandidateLimit, height * width * op.anchors);
    return nullptr;
}

const char* checkNumbers(const RpnProposals& op) {
    if (op.pre_nms_top_n < 1) return refuse("pre_nms_top_n is %d: expected 1 or more.", op.pre_nms_top_n);
    if (op.post_nms_top_n < 1 || op.post_nms_top_n > kRoiLimit)
        return refuse("post_nms_top_n is %d: expected 1 to %d.", op.post_nms_top_n, kRoiLimit);
    if (!(op.nms_threshold >= 0.0f && op.nms_threshold <= 1.0f))
        return refuse("nms_threshold is %g: expected 0 to 1.", op.nms_threshold);
    if (isnan(op.score_threshold)) return "score_threshold is NaN: expected a number.";
    if (isnan(op.min_size)) return "min_size is NaN: expected a number of network px.";
    if (isnan(op.box_clip)) return "box_clip is NaN: expected a number, torchvision's is log(1000 / 16).";
    for (int i = 0; i < 4; ++i) {
        if (!(op.box_coder_weights[i] > 0.0f) || isinf(op.box_coder_weights[i]))
            return refuse("box_coder_weights[%d] is %g: expected a finite number above 0.", i, op.box_coder_weights[i]);
    }
    return nullptr;
}

const char* check(const RpnProposals* op) {
    if (op == nullptr) return "op is a null pointer: expected an RpnProposals.";
    const char* wrong = checkMaps(*op);
    if (!wrong) wrong = checkNumbers(*op);
    for (int i = 0; !wrong && i < op->levels; ++i) wrong = checkLevel(*op, i);
    if (wrong) return wrong;
    const Plan plan = makePlan(*op);
    if (static_cast<long long>(op->batch) * max(maskBlocks(plan), plan.chunks) > kMostBlocks)
        return refuse("batch is %d: expected at most %lld at these sizes.", op->batch,
                      kMostBlocks / max(maskBlocks(plan), plan.chunks));
    return nullptr;
}

struct Tensors {
    const float* im_info;
    LevelPointers objectness, bbox_deltas;
    Box* rois;
    int32_t* num_rois;
};

template <typename T>
int32_t launchAll(const RpnProposals& op, const Plan& plan, const Tensors& tensors, const Workspace& workspace,
                  void* stream) {
    const unsigned segments = op.batch * op.levels;
    const bool few = plan.most_candidates <= kFewCandidates, by_warps = plan.most_candidates <= kMostByWarps;
    int32_t status = kSuccess;
    if (plan.chunks > 0)
        status = launch(selectInChunks<T>, dim3(op.batch * plan.chunks), kSelectThreads, 0, stream, plan,
                        tensors.objectness, workspace);
    if (status == kSuccess)
        status = launch(few ? rankAndDecode<T, 256> : rankAndDecode<T, kRankThreads>, dim3(segments),
                        few ? 256 : kRankThreads, 0, stream, op, plan, tensors.objectness, tensors.bbox_deltas,
                        tensors.im_info, workspace);
    if (status == kSuccess)
        status = launch(suppressionMask, dim3(op.batch * maskBlocks(plan)), kMaskThreads, 0, stream, plan,
                        iouTest(op.nms_threshold), workspace);
    if (status == kSuccess)
        status = launch(few        ? scanAndMerge<256, true>
                        : by_warps ? scanAndMerge<512, true>
                                   : scanAndMerge<1024, false>,
                        dim3(segments), few ? 256 : by_warps ? 512 : 1024, scanSharedBytes(plan), stream, plan,
                        workspace, tensors.rois, tensors.num_rois);
    return status;
}

}  // namespace
}  // namespace edgercnn::rpn_proposals

const char* edgercnn_rpn_proposals_check(const edgercnn::RpnProposals* op) {
    return edgercnn::rpn_proposals::check(op);
}

size_t edgercnn_rpn_proposals_workspace(const edgercnn::RpnProposals* op) {
    using namespace edgercnn::rpn_proposals;
    if (check(op)) return 0;
    Workspace workspace;
    return divideWorkspace(makePlan(*op), nullptr, workspace);
}

int32_t edgercnn_rpn_proposals(const edgercnn::RpnProposals* op, const float* im_info, const void* const* objectness,
                               const void* const* bbox_deltas, float* rois, int32_t* num_rois, void* memory,
                               void* stream) {
    using namespace edgercnn;
    using namespace edgercnn::rpn_proposals;
    if (check(op)) return kInvalidArgument;
    if (op->batch == 0) return kSuccess;
    if (!im_info || !objectness || !bbox_deltas || !rois || !num_rois || !memory) return kInvalidArgument;
    Tensors tensors = {im_info, {}, {}, reinterpret_cast<Box*>(rois), num_rois};
    for (int i = 0; i < op->levels; ++i) {
        tensors.objectness.of[i] = objectness[i];
        tensors.bbox_deltas.of[i] = bbox_deltas[i];
        if (!objectness[i] || !bbox_deltas[i]) return kInvalidArgument;
    }
    const Plan plan = makePlan(*op);
    Workspace workspace;
    divideWorkspace(plan, memory, workspace);
    return op->type == kFloat16 ? launchAll<Half>(*op, plan, tensors, workspace, stream)
                                : launchAll<float>(*op, plan, tensors, workspace, stream);
}
