// The page: which view is shown, whether the process still answers, light or dark.
import { render } from "preact";
import { useEffect, useState } from "preact/hooks";
import { useAsked, type TopologyList } from "./api";
import { clock, duration } from "./format";
import { Overview } from "./overview";
import { Topology } from "./topology";
import "./style.css";

type Theme = "system" | "light" | "dark";
const THEMES: Theme[] = ["system", "light", "dark"];
const THEME_NAMES: Record<Theme, string> = { system: "Theme: as the system", light: "Theme: light", dark: "Theme: dark" };

function storedTheme(): Theme {
  try {
    const stored = localStorage.getItem("theme") as Theme | null;
    return stored && THEMES.includes(stored) ? stored : "system";
  } catch {
    return "system";
  }
}

function useTheme(): [Theme, () => void] {
  const [theme, setTheme] = useState<Theme>(storedTheme);
  useEffect(() => {
    document.documentElement.dataset.theme = theme;
    try {
      localStorage.setItem("theme", theme);
    } catch {
      // A browser that keeps nothing still shows the theme.
    }
  }, [theme]);
  return [theme, () => setTheme(THEMES[(THEMES.indexOf(theme) + 1) % THEMES.length])];
}

/** What stands behind # in the address: "", "topology/NAME" or "topology/NAME/TAB". */
function useRoute(): string {
  const read = () => location.hash.replace(/^#\/?/, "");
  const [route, setRoute] = useState(read);
  useEffect(() => {
    const changed = () => {
      setRoute(read());
      scrollTo(0, 0);
    };
    addEventListener("hashchange", changed);
    return () => removeEventListener("hashchange", changed);
  }, []);
  return route;
}

function decoded(part: string): string {
  try {
    return decodeURIComponent(part);
  } catch {
    return part;
  }
}

function Page() {
  const route = useRoute();
  const [theme, nextTheme] = useTheme();
  const list = useAsked<TopologyList>("/api/v1/topologies");
  const topologies = list.value?.topologies ?? [];
  const [kind, chosenPart, tab = ""] = route.split("/");
  const chosen = kind === "topology" && chosenPart ? decoded(chosenPart) : null;
  useEffect(() => {
    document.title = chosen ? `${chosen} · Headwater` : "Headwater";
  }, [chosen]);
  return (
    <>
      <a class="skip" href="#main" onClick={(event) => {
        event.preventDefault();
        document.getElementById("main")?.focus();
      }}>
        Skip to the content
      </a>
      <header class="top">
        <a class="brand" href="#/">
          <img src="/icon.svg" alt="" width="26" height="26" /> Headwater
        </a>
        <nav aria-label="Views">
          <a href="#/" aria-current={chosen == null ? "page" : undefined}>
            Overview
          </a>
          {topologies.map(({ name }) => (
            <a key={name} href={`#/topology/${encodeURIComponent(name)}`} aria-current={chosen === name ? "page" : undefined}>
              {name}
            </a>
          ))}
        </nav>
        <span class="space" />
        <Live error={list.error} at={list.at} />
        <button type="button" class="theme" onClick={nextTheme} title={THEME_NAMES[theme]} aria-label={THEME_NAMES[theme]}>
          {theme === "system" ? "◐" : theme === "light" ? "☀" : "☾"}
        </button>
      </header>
      <main id="main" tabIndex={-1}>
        {list.error && (
          <p class="notice bad" role="alert">
            <b>Headwater does not answer.</b> The process has stopped, or it can't be reached; what it committed is safe.
            {list.at ? ` What you see is from ${clock(list.at)}.` : ""} The page asks again every 2 seconds.
          </p>
        )}
        <div class={list.error ? "stale" : ""}>
          {chosen != null ? (
            <Topology key={chosen} name={chosen} tab={tab} />
          ) : list.value ? (
            <Overview topologies={topologies} />
          ) : (
            <p class="quiet">Loading …</p>
          )}
        </div>
      </main>
      <footer>
        {list.value && (
          <span>
            Headwater {list.value.process.version}, up for {duration(list.value.process.uptime_seconds)}
          </span>
        )}
        <a href="/api/v1/openapi.json">API</a>
        <a href="/metrics">Metrics</a>
      </footer>
    </>
  );
}

function Live({ error, at }: { error: string | null; at: number | null }) {
  const [, tick] = useState(0);
  useEffect(() => {
    const timer = setInterval(() => tick((ticks) => ticks + 1), 1000);
    return () => clearInterval(timer);
  }, []);
  if (!error) return <span class="live on">{at ? "Live" : "Connecting"}</span>;
  return <span class="live off">{at ? `No answer for ${duration(Math.max(1, Math.round((Date.now() - at) / 1000)))}` : "No answer"}</span>;
}

const place = document.getElementById("page");
if (place) {
  place.replaceChildren();
  render(<Page />, place);
}
