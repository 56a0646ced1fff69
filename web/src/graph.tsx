// The graph of a topology: from the sources at the top to the sinks, with what flows now.
import dagre from "@dagrejs/dagre";
import { useLayoutEffect, useMemo, useRef, useState } from "preact/hooks";
import type { Description, GraphNode, Status } from "./api";
import { NONE, compact, duration, rate, time } from "./format";

const WIDTH_MAX = 236;
const WIDTH_MIN = 148;
/** Narrower boxes need another line. */
const WIDTH_NARROW = 210;
const MARGIN = 4;

const KINDS: Record<GraphNode["kind"], string> = {
  source: "Source",
  stage: "Stage",
  sink: "Topic",
  lake: "Lake table",
};

interface Facts {
  /** What flows, as a number a second; null where nothing is known. */
  flow: number | null;
  first: string;
  second: string;
  tone: "" | "warn" | "bad";
}

function facts(node: GraphNode, status: Status | null): Facts {
  const unknown: Facts = { flow: null, first: NONE, second: "", tone: "" };
  if (!status) return unknown;
  switch (node.kind) {
    case "source": {
      const source = status.sources.find((source) => source.name === node.name);
      if (!source) return unknown;
      const idle = source.idle_partitions > 0 ? `, ${source.idle_partitions} of ${source.partitions} idle` : "";
      return {
        flow: source.arriving_per_second,
        first: `${rate(source.arriving_per_second)} arrive/s`,
        second: `${compact(source.lag_records)} unread${source.lag_records > 0 && source.lag_seconds != null ? `, ${duration(source.lag_seconds)} old` : idle}`,
        tone: source.lag_seconds != null && source.lag_seconds > 60 ? "warn" : "",
      };
    }
    case "stage": {
      const stage = status.stages.find((stage) => stage.name === node.name);
      if (!stage) return unknown;
      const source = status.sources.find((source) => `ingest.${source.name}` === node.name);
      const problem = status.partitions.some((partition) => partition.stage === node.name && partition.problem);
      return {
        flow: source?.per_second?.read ?? stage.offsets_per_second,
        first: source ? `${rate(source.per_second?.read)} rows/s read` : `${rate(stage.offsets_per_second)} messages/s`,
        second: stage.watermark ? `watermark ${time(stage.watermark)}` : "no watermark yet",
        tone: problem ? "bad" : stage.held_by?.reason === "nothing_read" ? "warn" : "",
      };
    }
    case "sink": {
      const sink = status.sinks.find((sink) => sink.view === node.name);
      return {
        flow: sink?.offsets_per_second ?? null,
        first: `${rate(sink?.offsets_per_second)} offsets/s`,
        second: `ends at ${compact(sink?.end_offsets)}`,
        tone: "",
      };
    }
    case "lake":
      return { flow: 0, first: "written by a replay", second: "", tone: "" };
  }
}

/** As wide as the boxes of the fullest row may be to stand beside each other, within limits. */
function layout(description: Description, available: number) {
  const gap = available < 600 ? 12 : 28;
  const place = (width: number) => {
    const graph = new dagre.graphlib.Graph();
    graph.setGraph({ rankdir: "TB", nodesep: gap, ranksep: 46, marginx: MARGIN, marginy: MARGIN });
    graph.setDefaultEdgeLabel(() => ({}));
    const height = width < WIDTH_NARROW ? 106 : 92;
    for (const node of description.graph.nodes) graph.setNode(node.id, { width, height });
    for (const edge of description.graph.edges) graph.setEdge(edge.from, edge.to);
    dagre.layout(graph);
    const size = graph.graph() as { width?: number; height?: number };
    const at = new Map(description.graph.nodes.map((node) => [node.id, graph.node(node.id) as { x: number; y: number }]));
    return { box: { width, height }, width: size.width ?? 0, height: size.height ?? 0, at };
  };
  const wide = place(WIDTH_MAX);
  if (wide.width <= available) return wide;
  const rows = new Map<number, number>();
  for (const { y } of wide.at.values()) rows.set(y, (rows.get(y) ?? 0) + 1);
  const fullest = Math.max(1, ...rows.values());
  const fitting = Math.floor((available - 2 * MARGIN - gap * (fullest - 1)) / fullest);
  return place(Math.max(WIDTH_MIN, Math.min(WIDTH_MAX, fitting)));
}

export function TopologyGraph({
  description,
  status,
  selected,
  select,
}: {
  description: Description;
  status: Status | null;
  selected: string | null;
  select: (id: string | null) => void;
}) {
  const frame = useRef<HTMLDivElement>(null);
  const [available, setAvailable] = useState(WIDTH_MAX * 3);
  useLayoutEffect(() => {
    if (!frame.current) return;
    const watch = new ResizeObserver(([entry]) => setAvailable(Math.floor(entry.contentRect.width)));
    watch.observe(frame.current);
    return () => watch.disconnect();
  }, []);
  const { box, width, height, at: places } = useMemo(() => layout(description, available), [description, available]);
  const at = (id: string) => places.get(id) ?? { x: 0, y: 0 };
  const flowOf = (id: string) => {
    const node = description.graph.nodes.find((node) => node.id === id);
    return node ? facts(node, status).flow : null;
  };
  return (
    <div class="graph" ref={frame}>
      <div class="canvas" style={{ width: `${width}px`, height: `${height}px` }}>
        <svg width={width} height={height} aria-hidden="true">
          {description.graph.edges.map((edge) => {
            const [from, to] = [at(edge.from), at(edge.to)];
            const [y1, y2] = [from.y + box.height / 2, to.y - box.height / 2];
            const middle = (y1 + y2) / 2;
            const path = `M${from.x} ${y1}C${from.x} ${middle} ${to.x} ${middle} ${to.x} ${y2 - 7}`;
            const towardLake = edge.to.startsWith("lake:");
            const flows = !towardLake && (flowOf(edge.from) ?? 0) > 0;
            return (
              <g key={`${edge.from}>${edge.to}`} class={`edge ${flows ? "flows" : ""} ${towardLake ? "later" : ""}`}>
                <path class="way" d={path} />
                <path class="head" d={`M${to.x - 5} ${y2 - 8}L${to.x} ${y2 - 1}L${to.x + 5} ${y2 - 8}Z`} />
                {edge.exchange && (
                  <text x={(from.x + to.x) / 2 + 8} y={middle + 4}>
                    exchange by key
                  </text>
                )}
              </g>
            );
          })}
        </svg>
        {description.graph.nodes.map((node) => {
          const known = facts(node, status);
          const { x, y } = at(node.id);
          return (
            <button
              key={node.id}
              type="button"
              class={`node ${node.kind} ${known.tone} ${box.width < WIDTH_NARROW ? "narrow" : ""}`}
              style={{ left: `${x - box.width / 2}px`, top: `${y - box.height / 2}px`, width: `${box.width}px`, height: `${box.height}px` }}
              aria-pressed={selected === node.id}
              onClick={() => select(selected === node.id ? null : node.id)}
            >
              <span class="kind">{KINDS[node.kind]}</span>
              <span class="name" title={node.kind === "source" || node.kind === "stage" ? node.name : node.resource}>
                {node.kind === "sink" || node.kind === "lake" ? node.resource : node.name}
              </span>
              <span class="fact">{known.first}</span>
              <span class="fact second">{known.second}</span>
            </button>
          );
        })}
      </div>
    </div>
  );
}
