// All topologies of this process, each on one card.
import { useAsked, type History, type Summary } from "./api";
import { Chart } from "./chart";
import { compact, count, duration, rate } from "./format";
import { Moment, Outcomes, StateBadge, Tile } from "./parts";

export function Overview({ topologies }: { topologies: Summary[] }) {
  return (
    <>
      <h1>Overview</h1>
      {topologies.map((topology) => (
        <Card key={topology.name} topology={topology} />
      ))}
    </>
  );
}

function Card({ topology }: { topology: Summary }) {
  const history = useAsked<History>(`/api/v1/topologies/${encodeURIComponent(topology.name)}/history`).value;
  return (
    <article class="panel card">
      <header>
        <h2>
          <a href={`#/topology/${encodeURIComponent(topology.name)}`}>{topology.name}</a>
        </h2>
        <StateBadge state={topology.state} />
      </header>
      <p class="reason">{topology.reason}</p>
      <div class="tiles">
        <Tile label="Read" value={rate(topology.read_per_second)} unit="rows/s" />
        <Tile label="Lag" value={compact(topology.lag_records)} unit="records" />
        <Tile
          label="Oldest unread"
          value={topology.lag_records === 0 ? "none" : duration(topology.lag_seconds)}
          tone={topology.lag_seconds != null && topology.lag_seconds > 60 ? "warn" : ""}
        />
        <Tile label="Watermark (UTC)" value="" hint={<Moment iso={topology.watermark} />} />
      </div>
      <Outcomes counts={topology.counters} />
      {history && <Charts history={history} />}
      <p class={`error ${topology.last_error ? "" : "quiet"}`}>
        <b>Last error:</b> {topology.last_error ? `${topology.last_error.what}` : "none since this process began"}
      </p>
    </article>
  );
}

export function Charts({ history }: { history: History }) {
  const at = (iso: string) => Date.parse(iso);
  return (
    <div class="charts">
      <Chart
        title="Rows read a second"
        tone="flow"
        format={rate}
        samples={history.points.map((point) => ({ at: at(point.at), value: point.read_per_second }))}
      />
      <Chart
        title="Records unread"
        tone="lag"
        format={(value) => (value < 10 ? String(+value.toFixed(1)) : value < 100_000 ? count(value) : compact(value))}
        samples={history.points.map((point) => ({ at: at(point.at), value: point.lag_records }))}
      />
    </div>
  );
}
