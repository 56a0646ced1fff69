// What /api/v1 answers, as docs/openapi.json has it, and how it is asked.
import { useEffect, useState } from "preact/hooks";

export type State = "starting" | "running" | "stalled" | "unreachable" | "failing";

export interface Counts {
  read: number;
  refined: number;
  filtered: number;
  late: number;
  dead: number;
}

export interface Incident {
  at: string;
  what: string;
}

export interface ProcessInfo {
  version: string;
  started_at: string;
  uptime_seconds: number;
}

export interface Summary {
  name: string;
  state: State;
  reason: string;
  read_per_second: number | null;
  lag_records: number | null;
  lag_seconds: number | null;
  watermark: string | null;
  counters: Counts;
  last_error: Incident | null;
}

export interface TopologyList {
  process: ProcessInfo;
  topologies: Summary[];
}

export interface Column {
  name: string;
  type: string;
}

export interface GraphNode {
  id: string;
  kind: "source" | "stage" | "sink" | "lake";
  name: string;
  resource: string;
}

export interface GraphEdge {
  from: string;
  to: string;
  exchange: string | null;
}

export interface Description {
  name: string;
  fingerprint: string;
  version: string;
  group: string;
  dead_topic: string;
  late_topic: string;
  max_drift_seconds: number;
  sources: {
    name: string;
    topic: string;
    columns: Column[];
    event_time: string | null;
    out_of_orderness_seconds: number;
    idle_after_seconds: number;
    max_ahead_seconds: number;
    checks: string[];
  }[];
  views: { name: string; reads: string[]; sql: string; columns: Column[] }[];
  stages: { name: string; kind: string; reads: string; views: string[]; operators: string[] }[];
  sinks: {
    view: string;
    topic: string | null;
    key: string[];
    emit: string;
    lake_table: string | null;
    grace_seconds: number | null;
  }[];
  graph: { nodes: GraphNode[]; edges: GraphEdge[] };
}

export interface Hold {
  topic: string;
  partition: number;
  reason: string;
  text: string;
  behind_seconds: number | null;
}

export interface Partition {
  stage: string;
  topic: string;
  partition: number;
  here: boolean;
  committed: number | null;
  end: number;
  lag_records: number;
  lag_seconds: number | null;
  watermark: string | null;
  behind_seconds: number | null;
  idle: boolean;
  ended: boolean;
  counters: Counts | null;
  state_bytes: number | null;
  checkpoint_offset: number | null;
  problem: string | null;
}

export interface Status {
  name: string;
  state: State;
  reason: string;
  process: ProcessInfo;
  looked_at: string | null;
  counters: Counts;
  lag_records: number | null;
  lag_seconds: number | null;
  catch_up_seconds: number | null;
  sources: {
    name: string;
    topic: string;
    counters: Counts;
    per_second: Counts | null;
    arriving_per_second: number | null;
    lag_records: number;
    lag_seconds: number | null;
    watermark: string | null;
    partitions: number;
    idle_partitions: number;
  }[];
  stages: {
    name: string;
    partitions: number;
    partitions_here: number;
    offsets_per_second: number | null;
    lag_records: number;
    watermark: string | null;
    state_bytes_here: number;
    open_windows: number;
    state_expired: number;
    derived_dead: number;
    held_by: Hold | null;
  }[];
  sinks: { view: string; topic: string | null; end_offsets: number | null; offsets_per_second: number | null }[];
  partitions: Partition[];
  commits: {
    commits: number;
    aborts: number;
    age_seconds: number | null;
    median_seconds: number | null;
    slowest_seconds: number | null;
  };
  checkpoints: { written: number; last_bytes: number; slowest_seconds: number | null };
  incidents: Incident[];
}

export interface Point {
  at: string;
  read_per_second: number | null;
  lag_records: number;
  lag_seconds: number | null;
}

export interface History {
  name: string;
  points: Point[];
}

export interface Payload {
  text: string;
  encoding: string;
  bytes: number;
  is_cut: boolean;
}

export interface RecordShown {
  partition: number;
  offset: number;
  timestamp: string | null;
  key: Payload | null;
  value: Payload | null;
  headers: { name: string; value: Payload | null }[];
}

export interface RecordList {
  topic: string;
  exists: boolean;
  looked_at: string;
  complete: boolean;
  records: RecordShown[];
}

/** An answer as it was last had, and what became of the last question. */
export interface Asked<T> {
  value: T | null;
  /** When the value came, in milliseconds. */
  at: number | null;
  /** Why the last question has no answer. */
  error: string | null;
}

const EVERY_MS = 2000;
const PATIENCE_MS = 5000;

async function ask<T>(path: string, stop: AbortSignal): Promise<T> {
  const response = await fetch(path, { signal: AbortSignal.any([stop, AbortSignal.timeout(PATIENCE_MS)]) });
  if (!response.ok) {
    const failure = await response.json().catch(() => null);
    throw new Error(failure?.error ?? `the answer is ${response.status}`);
  }
  return response.json();
}

/** Asks again and again while the page is shown; `once` ends after the first answer. */
export function useAsked<T>(path: string, once = false): Asked<T> {
  const [asked, setAsked] = useState<Asked<T>>({ value: null, at: null, error: null });
  useEffect(() => {
    const stop = new AbortController();
    let timer: number | undefined;
    setAsked({ value: null, at: null, error: null });
    const look = async () => {
      let answered = false;
      if (!document.hidden) {
        try {
          const value = await ask<T>(path, stop.signal);
          setAsked({ value, at: Date.now(), error: null });
          answered = true;
        } catch (error) {
          if (stop.signal.aborted) return;
          const why = error instanceof Error ? error.message : String(error);
          setAsked((before) => ({ ...before, error: why }));
        }
      }
      if (!stop.signal.aborted && !(once && answered)) timer = setTimeout(look, EVERY_MS);
    };
    const shown = () => {
      if (!document.hidden) {
        clearTimeout(timer);
        look();
      }
    };
    look();
    if (!once) document.addEventListener("visibilitychange", shown);
    return () => {
      stop.abort();
      clearTimeout(timer);
      document.removeEventListener("visibilitychange", shown);
    };
  }, [path]);
  return asked;
}
