// Numbers, durations and times, as people read them. What is not known is a dash.

export const NONE = "–";

const whole = new Intl.NumberFormat("en", { maximumFractionDigits: 0 });
const short = new Intl.NumberFormat("en", { notation: "compact", maximumSignificantDigits: 3 });

export function count(value: number | null | undefined): string {
  return value == null ? NONE : whole.format(value);
}

/** 1,234 or 1.23M: for places that are narrow. */
export function compact(value: number | null | undefined): string {
  if (value == null) return NONE;
  return Math.abs(value) < 100_000 ? whole.format(value) : short.format(value);
}

export function rate(value: number | null | undefined): string {
  if (value == null) return NONE;
  if (value > 0 && value < 10) return value.toFixed(1);
  return compact(value);
}

export function duration(seconds: number | null | undefined): string {
  if (seconds == null) return NONE;
  if (seconds < 0.0005) return "0 s";
  if (seconds < 1) return `${Math.round(seconds * 1000)} ms`;
  if (seconds < 10) return `${Number.isInteger(seconds) ? seconds : seconds.toFixed(1)} s`;
  const all = Math.round(seconds);
  const parts: [number, string][] = [
    [Math.floor(all / 86400), "d"],
    [Math.floor(all / 3600) % 24, "h"],
    [Math.floor(all / 60) % 60, "min"],
    [all % 60, "s"],
  ];
  const first = parts.findIndex(([amount]) => amount > 0);
  return parts
    .slice(first, first + 2)
    .filter(([amount]) => amount > 0)
    .map(([amount, unit]) => `${amount} ${unit}`)
    .join(" ");
}

export function bytes(value: number | null | undefined): string {
  if (value == null) return NONE;
  const units = ["B", "KiB", "MiB", "GiB", "TiB"];
  let unit = 0;
  while (value >= 1024 && unit < units.length - 1) {
    value /= 1024;
    unit += 1;
  }
  return `${unit === 0 || value >= 100 ? Math.round(value) : value.toFixed(1)} ${units[unit]}`;
}

/** 2013-01-14 05:00:00, in UTC; parts of a second are left out. */
export function time(iso: string | null | undefined): string {
  return iso == null ? NONE : iso.replace("T", " ").replace(/(\.\d+)?Z$/, "");
}

/** The time of day here. */
export function clock(iso: string | number): string {
  return new Date(iso).toLocaleTimeString("en-GB");
}

export function plural(amount: number, thing: string): string {
  return `${count(amount)} ${thing}${amount === 1 ? "" : "s"}`;
}
