// A line over time with its area, its scale, and the value under the pointer.
import { useLayoutEffect, useRef, useState } from "preact/hooks";
import { clock } from "./format";

export interface Sample {
  at: number;
  value: number | null;
}

const HEIGHT = 132;
const TOP = 10;
const BOTTOM = 20;
const LEFT = 46;

/** The least round number that holds the value. */
function ceiling(value: number): number {
  if (value <= 0) return 1;
  const power = 10 ** Math.floor(Math.log10(value));
  return [1, 2, 3, 4, 6, 8, 10].map((step) => step * power).find((step) => step >= value) ?? value;
}

export function Chart({ title, samples, format, tone }: { title: string; samples: Sample[]; format: (value: number) => string; tone: string }) {
  const box = useRef<HTMLDivElement>(null);
  const [width, setWidth] = useState(480);
  const [under, setUnder] = useState<number | null>(null);
  useLayoutEffect(() => {
    if (!box.current) return;
    const watch = new ResizeObserver(([entry]) => setWidth(Math.max(200, entry.contentRect.width)));
    watch.observe(box.current);
    return () => watch.disconnect();
  }, []);
  const known = samples.filter((sample): sample is { at: number; value: number } => sample.value != null);
  const last = known[known.length - 1];
  const shown = under == null ? last : known[Math.min(under, known.length - 1)];
  const figure = (
    <figcaption>
      <span>{title}</span>
      <b>{shown ? format(shown.value) : "–"}</b>
      {under != null && shown && <time>{clock(shown.at)}</time>}
    </figcaption>
  );
  if (known.length < 2) {
    return (
      <figure class={`chart ${tone}`} ref={box as never}>
        {figure}
        <p class="quiet">The line begins with the next look at the brokers.</p>
      </figure>
    );
  }
  const top = ceiling(Math.max(...known.map((sample) => sample.value)));
  const [from, to] = [known[0].at, last.at];
  const x = (at: number) => LEFT + ((at - from) / Math.max(1, to - from)) * (width - LEFT - 6);
  const y = (value: number) => TOP + (1 - value / top) * (HEIGHT - TOP - BOTTOM);
  const line = known.map((sample, index) => `${index ? "L" : "M"}${x(sample.at).toFixed(1)} ${y(sample.value).toFixed(1)}`).join("");
  const floor = y(0).toFixed(1);
  const move = (event: PointerEvent) => {
    const at = event.clientX - (event.currentTarget as Element).getBoundingClientRect().left;
    const distances = known.map((sample) => Math.abs(x(sample.at) - at));
    setUnder(distances.indexOf(Math.min(...distances)));
  };
  return (
    <figure class={`chart ${tone}`} ref={box as never}>
      {figure}
      <svg
        width={width}
        height={HEIGHT}
        role="img"
        aria-label={`${title} from ${clock(from)} to ${clock(to)}: now ${format(last.value)}, at most ${format(Math.max(...known.map((sample) => sample.value)))}`}
        onPointerMove={move}
        onPointerLeave={() => setUnder(null)}
      >
        {[0, 0.5, 1].map((part) => (
          <g key={part}>
            <line class="grid" x1={LEFT} x2={width - 6} y1={y(top * part)} y2={y(top * part)} />
            <text x={LEFT - 6} y={y(top * part) + 4} text-anchor="end">
              {format(top * part)}
            </text>
          </g>
        ))}
        <path class="area" d={`${line}L${x(to).toFixed(1)} ${floor}L${x(from).toFixed(1)} ${floor}Z`} />
        <path class="line" d={line} />
        {shown && <circle cx={x(shown.at)} cy={y(shown.value)} r="3.5" />}
        <text x={LEFT} y={HEIGHT - 4}>{clock(from)}</text>
        <text x={width - 6} y={HEIGHT - 4} text-anchor="end">{clock(to)}</text>
      </svg>
    </figure>
  );
}
