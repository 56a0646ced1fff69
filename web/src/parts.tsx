// Small parts that several views use.
import type { ComponentChildren } from "preact";
import type { Counts, Incident, State } from "./api";
import { clock, compact, count, time } from "./format";

const STATES: Record<State, string> = {
  starting: "Starting",
  running: "Running",
  stalled: "Stalled",
  unreachable: "No broker answers",
  failing: "Failing",
};

export function StateBadge({ state }: { state: State }) {
  return (
    <span class={`badge ${state}`}>
      <span class="dot" aria-hidden="true" />
      {STATES[state]}
    </span>
  );
}

export function Tile({ label, value, unit, hint, tone }: { label: string; value: string; unit?: string; hint?: ComponentChildren; tone?: string }) {
  return (
    <div class={`tile ${tone ?? ""}`}>
      <div class="label">{label}</div>
      <div class="value">
        {value}
        {unit && <span class="unit"> {unit}</span>}
      </div>
      {hint && <div class="hint">{hint}</div>}
    </div>
  );
}

const OUTCOMES: [keyof Counts, string][] = [
  ["refined", "Refined"],
  ["filtered", "Filtered"],
  ["late", "Late"],
  ["dead", "Dead letters"],
];

/** What became of the records that were read. */
export function Outcomes({ counts }: { counts: Counts }) {
  const words = OUTCOMES.map(([name, label]) => `${label} ${count(counts[name])}`).join(", ");
  return (
    <div class="outcomes">
      <div class="bar" role="img" aria-label={`Of ${count(counts.read)} records: ${words}`}>
        {OUTCOMES.map(([name]) =>
          counts[name] > 0 ? <span key={name} class={name} style={{ flexGrow: counts[name] / counts.read }} /> : null,
        )}
      </div>
      <ul class="legend">
        <li>
          <b>{compact(counts.read)}</b> read
        </li>
        {OUTCOMES.map(([name, label]) => (
          <li key={name} class={counts[name] === 0 ? "none" : ""}>
            <span class={`swatch ${name}`} aria-hidden="true" />
            <b>{compact(counts[name])}</b> {label.toLowerCase()}
          </li>
        ))}
      </ul>
    </div>
  );
}

/** A moment in the log's or the events' time; the title has all of it. */
export function Moment({ iso }: { iso: string | null }) {
  return (
    <time class="moment" dateTime={iso ?? undefined} title={iso ? `${iso} (UTC)` : "not known yet"}>
      {time(iso)}
    </time>
  );
}

export function Incidents({ incidents }: { incidents: Incident[] }) {
  if (incidents.length === 0) return <p class="quiet">Nothing went wrong since this process began.</p>;
  return (
    <ul class="incidents">
      {incidents.map((incident) => (
        <li key={incident.at + incident.what}>
          <time dateTime={incident.at}>{clock(incident.at)}</time> {incident.what}
        </li>
      ))}
    </ul>
  );
}

export function Section({ title, note, children, wide }: { title: string; note?: ComponentChildren; children: ComponentChildren; wide?: boolean }) {
  return (
    <section class={`panel ${wide ? "wide" : ""}`}>
      <header>
        <h2>{title}</h2>
        {note && <span class="note">{note}</span>}
      </header>
      {children}
    </section>
  );
}
