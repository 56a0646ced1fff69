// The graph of a topology: from the sources at the top to the sinks, with what flows now.
import dagre from "@dagrejs/dagre";
import { useMemo } from "preact/hooks";
import type { Description, GraphNode, Status } from "./api";
import { NONE, compact, duration, rate, time } from "./format";

const WIDTH = 236;
const HEIGHT = 92;

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

function layout(description: Description) {
  const graph = new dagre.graphlib.Graph();
  graph.setGraph({ rankdir: "TB", nodesep: 28, ranksep: 46, marginx: 4, marginy: 4 });
  graph.setDefaultEdgeLabel(() => ({}));
  for (const node of description.graph.nodes) graph.setNode(node.id, { width: WIDTH, height: HEIGHT });
  for (const edge of description.graph.edges) graph.setEdge(edge.from, edge.to);
  dagre.layout(graph);
  const { width = 0, height = 0 } = graph.graph() as { width?: number; height?: number };
  const place = new Map(description.graph.nodes.map((node) => [node.id, graph.node(node.id) as { x: number; y: number }]));
  return { width, height, place };
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
  const { width, height, place } = useMemo(() => layout(description), [description]);
  const at = (id: string) => place.get(id) ?? { x: 0, y: 0 };
  const flowOf = (id: string) => {
    const node = description.graph.nodes.find((node) => node.id === id);
    return node ? facts(node, status).flow : null;
  };
  return (
    <div class="graph" tabIndex={-1}>
      <div class="canvas" style={{ width: `${width}px`, height: `${height}px` }}>
        <svg width={width} height={height} aria-hidden="true">
          {description.graph.edges.map((edge) => {
            const [from, to] = [at(edge.from), at(edge.to)];
            const [y1, y2] = [from.y + HEIGHT / 2, to.y - HEIGHT / 2];
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
              class={`node ${node.kind} ${known.tone}`}
              style={{ left: `${x - WIDTH / 2}px`, top: `${y - HEIGHT / 2}px`, width: `${WIDTH}px`, height: `${HEIGHT}px` }}
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
