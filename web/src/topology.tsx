// One topology: its graph with what flows, the SQL beside it, and what stands behind the numbers.
import { useState } from "preact/hooks";
import { useAsked, type Column, type Description, type History, type Partition, type Status } from "./api";
import { bytes, compact, count, duration, plural, rate } from "./format";
import { TopologyGraph } from "./graph";
import { Charts } from "./overview";
import { Incidents, Moment, Outcomes, Section, StateBadge, Tile } from "./parts";
import { DeadLetters, Records } from "./records";
import { Sql } from "./sql";

const TABS: [string, string][] = [
  ["", "Graph"],
  ["records", "Records"],
  ["dead", "Dead letters"],
];

export function Topology({ name, tab }: { name: string; tab: string }) {
  const path = `/api/v1/topologies/${encodeURIComponent(name)}`;
  const described = useAsked<Description>(path, true);
  const status = useAsked<Status>(`${path}/status`).value;
  const description = described.value;
  if (!description) {
    return described.error ? <p class="notice bad">{described.error}</p> : <p class="quiet">Loading …</p>;
  }
  return (
    <>
      <header class="title">
        <h1>{name}</h1>
        {status && <StateBadge state={status.state} />}
        {status && <p class="reason">{status.reason}</p>}
      </header>
      <nav class="tabs" aria-label={`Views of ${name}`}>
        {TABS.map(([key, label]) => (
          <a key={key} href={`#/topology/${encodeURIComponent(name)}${key && `/${key}`}`} aria-current={tab === key ? "page" : undefined}>
            {label}
            {key === "dead" && status && status.counters.dead > 0 && <span class="count">{compact(status.counters.dead)}</span>}
          </a>
        ))}
      </nav>
      {tab === "records" ? (
        <Records description={description} />
      ) : tab === "dead" ? (
        <DeadLetters description={description} total={status?.counters.dead ?? null} />
      ) : (
        <Graph description={description} status={status} path={path} />
      )}
    </>
  );
}

function Graph({ description, status, path }: { description: Description; status: Status | null; path: string }) {
  const history = useAsked<History>(`${path}/history`).value;
  const [selected, select] = useState<string | null>(null);
  return (
    <>
      {status && <Tiles status={status} />}
      <div class="beside">
        <Section title="Graph" note="Choose a box to see what is in it">
          <TopologyGraph description={description} status={status} selected={selected} select={select} />
        </Section>
        <Details description={description} status={status} selected={selected} select={select} />
      </div>
      {status && <Watermarks status={status} />}
      {history && (
        <Section title="Over time" note="A point each time the brokers were asked, for up to half an hour">
          <Charts history={history} />
        </Section>
      )}
      {status && <Partitions partitions={status.partitions} />}
      {status && (
        <Section title="What went wrong">
          <Incidents incidents={status.incidents} />
        </Section>
      )}
    </>
  );
}

function Tiles({ status }: { status: Status }) {
  const read = status.sources.reduce<number | null>(
    (sum, source) => (source.per_second ? (sum ?? 0) + source.per_second.read : sum),
    null,
  );
  const { commits, checkpoints } = status;
  const late = status.lag_seconds != null && status.lag_seconds > 60;
  return (
    <div class="tiles">
      <Tile label="Read" value={rate(read)} unit="rows/s" />
      <Tile
        label="Lag"
        value={compact(status.lag_records)}
        unit="records"
        tone={late ? "warn" : ""}
        hint={
          status.lag_records
            ? `oldest ${duration(status.lag_seconds)}; ${status.catch_up_seconds == null ? "does not get less" : `caught up in ${duration(status.catch_up_seconds)}`}`
            : "caught up"
        }
      />
      <Tile
        label="Commits"
        value={compact(commits.commits)}
        hint={`median ${duration(commits.median_seconds)}, slowest ${duration(commits.slowest_seconds)}, last ${duration(commits.age_seconds)} ago`}
      />
      <Tile
        label="Checkpoints"
        value={compact(checkpoints.written)}
        hint={checkpoints.written ? `last ones ${bytes(checkpoints.last_bytes)}, slowest ${duration(checkpoints.slowest_seconds)}` : "none yet"}
      />
      <Tile label="Late" value={compact(status.counters.late)} unit="records" tone={status.counters.late ? "warn" : ""} />
      <Tile label="Dead letters" value={compact(status.counters.dead)} unit="records" tone={status.counters.dead ? "bad" : ""} />
    </div>
  );
}

function Details({
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
  const node = description.graph.nodes.find((node) => node.id === selected);
  if (!node) {
    return (
      <Section title="SQL" note={plural(description.views.length, "view")}>
        {description.views.map((view) => (
          <ViewSql key={view.name} view={view} />
        ))}
      </Section>
    );
  }
  const back = (
    <button type="button" class="link" onClick={() => select(null)}>
      Show all SQL
    </button>
  );
  if (node.kind === "source") {
    const source = description.sources.find((source) => source.name === node.name);
    const live = status?.sources.find((source) => source.name === node.name);
    if (!source) return null;
    return (
      <Section title={`Source ${source.name}`} note={back}>
        {live && <Outcomes counts={live.counters} />}
        <dl>
          <Fact name="Topic">{source.topic}</Fact>
          <Fact name="Event time">{source.event_time ?? "the timestamp of the record"}</Fact>
          <Fact name="Out of order">{`up to ${duration(source.out_of_orderness_seconds)}`}</Fact>
          <Fact name="Idle after">{duration(source.idle_after_seconds)}</Fact>
          <Fact name="Watermark">{<Moment iso={live?.watermark ?? null} />}</Fact>
          <Fact name="Checks">{source.checks.join(", ") || "none"}</Fact>
        </dl>
        <Columns columns={source.columns} />
      </Section>
    );
  }
  if (node.kind === "stage") {
    const stage = description.stages.find((stage) => stage.name === node.name);
    const live = status?.stages.find((stage) => stage.name === node.name);
    if (!stage) return null;
    return (
      <Section title={`Stage ${stage.name}`} note={back}>
        <ol class="operators">
          {stage.operators.map((operator, index) => (
            <li key={index}>{operator}</li>
          ))}
        </ol>
        <dl>
          <Fact name="Reads">{stage.reads}</Fact>
          {live && <Fact name="Partitions">{`${live.partitions}, ${live.partitions_here} in this process`}</Fact>}
          {live && <Fact name="Unread">{plural(live.lag_records, "offset")}</Fact>}
          {live && <Fact name="Watermark">{<Moment iso={live.watermark} />}</Fact>}
          {live && live.open_windows > 0 && <Fact name="Open windows">{count(live.open_windows)}</Fact>}
          {live && stage.kind === "keyed" && <Fact name="State in memory">{bytes(live.state_bytes_here)}</Fact>}
          {live && stage.kind === "keyed" && <Fact name="Expired rows">{count(live.state_expired)}</Fact>}
        </dl>
        {description.views
          .filter((view) => stage.views.includes(view.name))
          .map((view) => (
            <ViewSql key={view.name} view={view} />
          ))}
      </Section>
    );
  }
  const sink = description.sinks.find((sink) => sink.view === node.name);
  const view = description.views.find((view) => view.name === node.name);
  if (!sink) return null;
  return (
    <Section title={`Sink of ${sink.view}`} note={back}>
      <dl>
        {sink.topic && <Fact name="Topic">{sink.topic}</Fact>}
        {sink.topic && <Fact name="Key">{sink.key.join(", ") || "none: rows are appended"}</Fact>}
        {sink.topic && <Fact name="Rows leave">{sink.emit === "final" ? "when their window is closed" : "as windows change"}</Fact>}
        {sink.lake_table && <Fact name="Lake table">{sink.lake_table}</Fact>}
        <Fact name="Grace">{sink.grace_seconds == null ? "without end" : duration(sink.grace_seconds)}</Fact>
      </dl>
      {view && <ViewSql view={view} />}
    </Section>
  );
}

function Fact({ name, children }: { name: string; children: preact.ComponentChildren }) {
  return (
    <div>
      <dt>{name}</dt>
      <dd>{children}</dd>
    </div>
  );
}

function ViewSql({ view }: { view: Description["views"][number] }) {
  return (
    <div class="view">
      <h3>{view.name}</h3>
      <Sql text={view.sql} />
      <Columns columns={view.columns} />
    </div>
  );
}

function Columns({ columns }: { columns: Column[] }) {
  return (
    <details>
      <summary>{plural(columns.length, "column")}</summary>
      <table class="columns">
        <tbody>
          {columns.map((column) => (
            <tr key={column.name}>
              <th scope="row">{column.name}</th>
              <td>{column.type}</td>
            </tr>
          ))}
        </tbody>
      </table>
    </details>
  );
}

function Watermarks({ status }: { status: Status }) {
  const keyed = status.stages.filter((stage) => stage.held_by);
  if (keyed.length === 0) return null;
  return (
    <Section title="Who holds the watermarks back" note="A window closes when the watermark passes its end">
      <ul class="holds">
        {keyed.map((stage) => (
          <li key={stage.name} class={stage.held_by?.reason === "nothing_read" ? "warn" : ""}>
            {stage.held_by?.text}
          </li>
        ))}
      </ul>
    </Section>
  );
}

function Partitions({ partitions }: { partitions: Partition[] }) {
  return (
    <Section title="Partitions" note={`${partitions.filter((partition) => partition.here).length} of ${partitions.length} in this process`}>
      <div class="scroll" tabIndex={0} role="region" aria-label="Partitions">
        <table class="partitions">
          <thead>
            <tr>
              <th scope="col">Stage</th>
              <th scope="col">Topic</th>
              <th scope="col" class="number">Partition</th>
              <th scope="col" class="number">Committed</th>
              <th scope="col" class="number">Lag</th>
              <th scope="col" class="number">Oldest unread</th>
              <th scope="col">Watermark (UTC)</th>
              <th scope="col" class="number">Behind</th>
              <th scope="col" class="number">Late</th>
              <th scope="col" class="number">Dead</th>
              <th scope="col" class="number">Checkpoint at</th>
              <th scope="col">State</th>
            </tr>
          </thead>
          <tbody>
            {partitions.map((at) => (
              <tr key={`${at.topic}/${at.partition}`} class={at.problem ? "bad" : ""}>
                <td>{at.stage}</td>
                <td>{at.topic}</td>
                <td class="number">{at.partition}</td>
                <td class="number">{count(at.committed)}</td>
                <td class="number">{count(at.lag_records)}</td>
                <td class="number">{at.lag_records === 0 ? "" : duration(at.lag_seconds)}</td>
                <td>{at.ended ? "ended" : <Moment iso={at.watermark} />}</td>
                <td class="number">{duration(at.behind_seconds)}</td>
                <td class="number">{at.counters ? count(at.counters.late) : ""}</td>
                <td class="number">{at.counters ? count(at.counters.dead) : ""}</td>
                <td class="number">{at.checkpoint_offset == null ? "" : count(at.checkpoint_offset)}</td>
                <td>{at.problem ?? (at.here ? (at.idle ? "idle" : "here") : "elsewhere")}</td>
              </tr>
            ))}
          </tbody>
        </table>
      </div>
    </Section>
  );
}
