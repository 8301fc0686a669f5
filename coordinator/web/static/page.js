"use strict";

const EVERY_MILLISECONDS = 5000;

const colour = (name) => getComputedStyle(document.documentElement).getPropertyValue(name).trim();

// a dashed line where the lineage took no ordinary step
function markUnusual(plot, points) {
  const { ctx, bbox } = plot;
  ctx.save();
  ctx.setLineDash([4, 4]);
  points.kind.forEach((kind, index) => {
    if (kind === "merge") return;
    const x = Math.round(plot.valToPos(points.version[index], "x", true));
    ctx.strokeStyle = colour(kind === "rollback" ? "--warn" : "--bad");
    ctx.beginPath();
    ctx.moveTo(x, bbox.top);
    ctx.lineTo(x, bbox.top + bbox.height);
    ctx.stroke();
  });
  ctx.restore();
}

function axis(options) {
  return {
    stroke: colour("--quiet"),
    grid: { stroke: colour("--line"), width: 1 },
    ticks: { stroke: colour("--line"), width: 1 },
    font: "12px system-ui, sans-serif",
    ...options,
  };
}

const shortNumber = (value) => String(Number(value.toPrecision(4)));
const percent = (value) => `${shortNumber(100 * value)} %`;

function draw(id, points, series, { format = shortNumber, range }) {
  const place = document.getElementById(id);
  const few = points.version.length < 60;
  const options = {
    width: place.clientWidth,
    height: place.clientHeight - 30,
    cursor: { sync: { key: "versions" }, drag: { x: true, y: false } },
    scales: { x: { time: false, range: (_, low, high) => (low === high ? [low - 1, high + 1] : [low, high]) }, y: { range } },
    axes: [
      axis({ incrs: [1, 2, 5, 10, 20, 50, 100, 200, 500, 1000, 2000, 5000, 10000, 50000, 100000, 1000000] }),
      axis({ size: 64, values: (_, ticks) => ticks.map(format) }),
    ],
    series: [
      { label: "Version", value: (_, value) => (value == null ? "-" : String(value)) },
      ...series.map(([label, , name, extra]) => ({
        label,
        stroke: colour(name),
        width: 2,
        points: { show: few, size: 6, fill: colour("--paper"), stroke: colour(name) },
        value: (_, value) => (value == null ? "-" : format(value)),
        ...extra,
      })),
    ],
    hooks: {
      draw: [(plot) => markUnusual(plot, points)],
      // until somebody points at a version, the newest is spelled out
      ready: [(plot) => plot.setLegend({ idx: points.version.length - 1 })],
    },
  };
  place.replaceChildren();
  return new uPlot(options, [points.version, ...series.map(([, column]) => points[column])], place);
}

// from zero up, with room above; a flat line at zero still gets a scale
const fromZero = (_, low, high) => [0, high > 0 ? high * 1.08 : 1];
const stepped = { paths: uPlot.paths.stepped({ align: 1 }) };
const shares = (_, low) => [Math.max(0, Math.min(0.99, low - (1 - low) * 0.15)), 1];

function drawAll() {
  const data = document.getElementById("points");
  if (!data) return;
  const points = JSON.parse(data.textContent);
  draw("chart-energy", points, [["Mean", "mean_energy_kept", "--accent"], ["Lowest", "lowest_energy_kept", "--second"]], { format: percent, range: shares });
  draw("chart-angle", points, [["Angle", "angle", "--accent"]], { range: fromZero });
  draw("chart-factors", points, [["k", "num_factors", "--accent", stepped]], { range: fromZero });
  draw("chart-drift", points, [["Drift", "largest_drift", "--accent"]], { range: fromZero });
}

async function refresh() {
  if (document.hidden || !document.getElementById("live").checked) return;
  let found;
  try {
    const response = await fetch(location.href);
    if (!response.ok || response.redirected) return;
    found = new DOMParser().parseFromString(await response.text(), "text/html");
  } catch {
    return; // the coordinator is gone for the moment: what is shown says when it was read
  }
  const points = document.getElementById("points");
  const freshPoints = found.getElementById("points");
  if (!points !== !freshPoints) {
    location.reload(); // the first version: the charts have no place yet
    return;
  }
  if (points && points.textContent !== freshPoints.textContent) {
    points.textContent = freshPoints.textContent;
    drawAll();
  }
  for (const part of document.querySelectorAll("[data-live]")) {
    const fresh = found.getElementById(part.id);
    if (fresh) part.replaceChildren(...fresh.childNodes);
  }
}

drawAll();
addEventListener("resize", drawAll);
matchMedia("(prefers-color-scheme: dark)").addEventListener("change", drawAll);
setInterval(refresh, EVERY_MILLISECONDS);
