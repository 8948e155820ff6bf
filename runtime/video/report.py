"""A RunReport as plain text."""

from __future__ import annotations

import numpy as np

from runtime.tables import format_table
from runtime.video.pipeline import RunReport


def format_report(report: RunReport) -> str:
    """Speed, latency, the time of each stage and the state of each queue."""
    rows: list[tuple[str | None, ...]] = []
    alone_ms = 0.0
    for name, times in report.clock.times_ms.items():
        median, p95 = np.percentile(times, [50, 95])
        alone_ms += median
        rows.append((name, f"{median:.2f}", f"{p95:.2f}", f"{report.clock.total_s[name] / report.seconds:.0%}"))
    rows.append(("one frame alone", f"{alone_ms:.2f}", None, None))
    queues = [
        (f"before {queue.name}", queue.size, f"{queue.mean_depth:.1f}", queue.max_depth, queue.dropped)
        for queue in report.queues
    ]
    p50, p95, p99 = (report.latency_percentile(percent) for percent in (50, 95, 99))
    return "\n".join(
        [
            f"{report.frames} frames in {report.seconds:.2f} s: {report.frames_per_second:.1f} frames/s, "
            f"{report.detections} detections",
            f"latency from decoded to written, waits included: p50 {p50:.1f} ms, p95 {p95:.1f} ms, p99 {p99:.1f} ms",
            "",
            format_table(("stage", "median ms", "p95 ms", "busy"), rows),
            "",
            format_table(("queue", "size", "mean depth", "max", "dropped"), queues),
        ]
    )
