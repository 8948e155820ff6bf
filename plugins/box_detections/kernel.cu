// BoxDetections: softmax, decode, clip, thresholds, greedy NMS within each class, the best D, boxes in image px.
//
// B images, R rois per image, K foreground classes, D = max_detections; a candidate is a (roi, class) above the score
// threshold, its index roi * K + class. The rule is README.md's. Ref: Girshick, Fast R-CNN (2015), section 3;
// torchvision's RoIHeads.postprocess_detections.
//
// Precision: logits and deltas are float32 or float16 and become float32 on reading; all arithmetic is float32.
//
// Two launches:
//   softmaxStatistics  a warp per roi: the maximum of its logits, and the sum of exp(logit - maximum).
//   detectClasses      a block of 256 threads per (image, class), or one for several of them: candidates, sort, decode,
//                      NMS; what stays goes to the image's list. The block that ends an image's last class takes the
//                      best D of the list and writes the outputs.
#include "box_detections/kernel.h"

#include "box_detections/candidates.h"
#include "common/check.h"
#include "common/last_block.h"

namespace edgercnn::box_detections {
namespace {

// A NaN logit, or +inf, makes the sum NaN, and so all scores of its roi, which are then above no threshold.
template <typename T>
__global__ void __launch_bounds__(kThreads) softmaxStatistics(Arguments<T> a) {
    const int64_t thread = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x;
    if (thread < a.op.batch) a.workspace.listed[thread] = a.workspace.finished[thread] = 0;
    if (thread == 0) *a.workspace.slots_taken = 0;
    const unsigned row = blockIdx.x * kWarps + threadIdx.x / kWarpSize, rois = a.op.rois;  // < 2^31, so says _check
    if (row >= a.op.batch * rois) return;
    const unsigned image = row / rois;
    if (row - image * rois >= static_cast<unsigned>(usedRois(a, image))) return;
    const int columns = a.op.classes + 1, lane = threadIdx.x % kWarpSize;
    const T* logits = a.class_logits + static_cast<size_t>(row) * columns;
    float maximum = -INFINITY, sum = 0.0f;
    for (int column = lane; column < columns; column += kWarpSize) maximum = fmaxf(maximum, to_float(logits[column]));
    for (int offset = kWarpSize / 2; offset > 0; offset /= 2) {
        maximum = fmaxf(maximum, __shfl_xor_sync(kFullMask, maximum, offset));
    }
    for (int column = lane; column < columns; column += kWarpSize) sum += expf(to_float(logits[column]) - maximum);
    for (int offset = kWarpSize / 2; offset > 0; offset /= 2) sum += __shfl_xor_sync(kFullMask, sum, offset);
    if (lane == 0) a.workspace.statistics[row] = {maximum, sum};
}

// The best D of the image's list, or all if they are fewer, sorted, to `keys`; returns their number.
template <typename T>
DEVICE int rankDetections(const Arguments<T>& a, int image, RankKey* keys, SelectScratch& scratch) {
    __shared__ unsigned counter;
    RankKey* list = a.workspace.lists + static_cast<size_t>(image) * a.sizes.list_keys;
    auto keyAt = [&](int i) { return list[i]; };
    const int listed = a.workspace.listed[image], most = a.op.max_detections;
    const RankKey least = blockSelect<kThreads>(keyAt, listed, most, scratch);
    const int found = blockCollect<kThreads>(keyAt, listed, least, keys, most, &counter);
    const int size = nextPowerOfTwo(found);
    for (int i = found + threadIdx.x; i < size; i += kThreads) keys[i] = kNoCandidate;
    __syncthreads();
    blockSortDescending<kThreads>(keys, size);
    return found;
}

template <typename T>
DEVICE void writeDetections(const Arguments<T>& a, int image) {
    SelectScratch* scratch = reinterpret_cast<SelectScratch*>(dynamic_shared());
    RankKey* keys = a.sizes.ranked_in_shared ? reinterpret_cast<RankKey*>(scratch + 1)
                                             : a.workspace.ranked + static_cast<size_t>(image) * a.sizes.ranked_keys;
    const int found = rankDetections(a, image, keys, *scratch);
    const ImageInfo info = a.im_info[image];
    for (int i = threadIdx.x; i < a.op.max_detections; i += kThreads) {
        Box box{0.0f, 0.0f, 0.0f, 0.0f};
        float score = 0.0f;
        int label = -1;
        if (i < found) {
            const int index = keyIndex(keys[i]), roi = index / a.op.classes;
            label = index - roi * a.op.classes;
            score = keyScore(keys[i]);
            box = candidateBox(a, info, image, label, roi);
            box = {box.x1 / info.scale_x, box.y1 / info.scale_y, box.x2 / info.scale_x, box.y2 / info.scale_y};
        }
        const size_t place = static_cast<size_t>(image) * a.op.max_detections + i;
        a.boxes[place] = box;
        a.scores[place] = score;
        a.classes[place] = label;
    }
    if (threadIdx.x == 0) a.num_detections[image] = found;
}

template <typename T>
__global__ void __launch_bounds__(kThreads, 4) detectClasses(Arguments<T> a) {
    const int pairs = a.op.batch * a.op.classes;
    unsigned char* slot = nullptr;
    for (int64_t pair = blockIdx.x; pair < pairs; pair += gridDim.x) {
        const int image = static_cast<int>(pair) / a.op.classes, label = static_cast<int>(pair) % a.op.classes;
        const Candidates candidates = sortedCandidates(a, image, label, slot);
        if (candidates.count > 0) {
            decodeCandidates(a, image, label, candidates);
            const int most = a.op.max_detections;
            const int kept = min(keepGreedily(candidates, most, a.op.nms_threshold), most);
            RankKey* list = a.workspace.lists + static_cast<size_t>(image) * a.sizes.list_keys;
            appendAlive(candidates, kept, list, a.workspace.listed + image);
        }
        if (endsGroup(a.workspace.finished + image, a.op.classes)) writeDetections(a, image);
    }
}

template <typename T>
int32_t launchDetections(const BoxDetections& op, const void* logits, const void* deltas, Arguments<T> a,
                         void* workspace, void* stream) {
    a.op = op;
    a.sizes = sizesOf(op);
    layOut(op, a.sizes, static_cast<unsigned char*>(workspace), a.workspace);
    a.class_logits = static_cast<const T*>(logits);
    a.deltas = static_cast<const Deltas<T>*>(deltas);
    const int64_t rows = static_cast<int64_t>(op.batch) * (op.rois > 0 ? op.rois : 1);  // at least a thread per image
    const unsigned grid = static_cast<unsigned>((rows + kWarps - 1) / kWarps);
    const int32_t status = launch(softmaxStatistics<T>, grid, kThreads, 0, stream, a);
    if (status != kSuccess) return status;
    return launch(detectClasses<T>, a.sizes.blocks, kThreads, a.sizes.shared_bytes, stream, a);
}

}  // namespace
}  // namespace edgercnn::box_detections

using namespace edgercnn;
using namespace edgercnn::box_detections;

const char* edgercnn_box_detections_check(const BoxDetections* op) {
    constexpr int32_t kMost = 1 << 20;
    const auto within = [](int32_t value, int32_t least, int32_t most) { return value >= least && value <= most; };
    if (op->batch < 0) return refuse("batch is %d; it must not be negative.", op->batch);
    if (!within(op->rois, 0, kMost)) return refuse("rois per image are %d; give 0 to %d.", op->rois, kMost);
    if (!within(op->classes, 1, kMost)) return refuse("foreground classes are %d; give 1 to %d.", op->classes, kMost);
    if (!within(op->max_detections, 1, kMost)) {
        return refuse("max_detections is %d; give 1 to %d.", op->max_detections, kMost);
    }
    const int64_t rows = op->rois > op->classes ? op->rois : op->classes;
    if (static_cast<int64_t>(op->rois) * op->classes > INT32_MAX) {
        return refuse("%d rois times %d classes exceed 2^31 - 1; take fewer rois.", op->rois, op->classes);
    }
    if (op->batch * rows > INT32_MAX) {
        return refuse("batch %d times %d rois or classes exceeds 2^31 - 1; split the batch.", op->batch, (int)rows);
    }
    if (op->type != kFloat32 && op->type != kFloat16) {
        return refuse("type %d of class_logits and bbox_deltas is unknown; give float32 (0) or float16 (1).", op->type);
    }
    if (!within(op->class_agnostic, 0, 1)) return refuse("class_agnostic is %d; give 0 or 1.", op->class_agnostic);
    if (isnan(op->score_threshold)) return refuse("score_threshold is NaN; give a number.");
    if (!(op->nms_threshold >= 0.0f)) return refuse("nms_threshold is %g; give 0 or more.", op->nms_threshold);
    if (isnan(op->min_size)) return refuse("min_size is NaN; give a number.");
    if (isnan(op->box_clip)) return refuse("box_clip is NaN; give a number.");
    for (float weight : op->box_coder_weights) {
        if (!isfinite(weight) || weight == 0.0f) {
            return refuse("a weight of box_coder_weights is %g; give four finite numbers other than 0.", weight);
        }
    }
    return nullptr;
}

size_t edgercnn_box_detections_workspace(const BoxDetections* op) {
    if (edgercnn_box_detections_check(op) != nullptr) return 0;
    Workspace workspace;
    return layOut(*op, sizesOf(*op), nullptr, workspace);
}

int32_t edgercnn_box_detections(const BoxDetections* op, const float* rois, const int32_t* num_rois,
                                const void* class_logits, const void* bbox_deltas, const float* im_info,
                                int32_t* num_detections, float* detection_boxes, float* detection_scores,
                                int32_t* detection_classes, void* workspace, void* stream) {
    if (edgercnn_box_detections_check(op) != nullptr) return kInvalidArgument;
    if (op->batch == 0) return kSuccess;
    if (workspace == nullptr) return kInvalidArgument;
    auto run = [&](auto arguments) {
        arguments.rois = reinterpret_cast<const Box*>(rois);
        arguments.num_rois = num_rois;
        arguments.im_info = reinterpret_cast<const ImageInfo*>(im_info);
        arguments.num_detections = num_detections;
        arguments.boxes = reinterpret_cast<Box*>(detection_boxes);
        arguments.scores = detection_scores;
        arguments.classes = detection_classes;
        return launchDetections(*op, class_logits, bbox_deltas, arguments, workspace, stream);
    };
    return op->type == kFloat16 ? run(Arguments<Half>{}) : run(Arguments<float>{});
}
