// The data of the page, which Python wrote below: `runs`, `charts` and the `ranks` of runs that moved them.
const data = JSON.parse(document.getElementById('data').textContent);
const dialog = document.querySelector('dialog');
const make = (tag, properties = {}, ...children) => {
  const made = Object.assign(document.createElement(tag), properties);
  made.append(...children);
  return made;
};

// Sorting. A second click on a heading sorts in the other direction. Grey lines stay below their row and groups of rows
// stay together. Cells without a number come last.
function key(row, column) {
  const cell = row.cells[column];
  const text = cell.dataset.value ?? cell.textContent;
  const number = parseFloat(text.replace(/,/g, ''));
  return cell.classList.contains('text') || row.cells[0] === cell ? text : Number.isNaN(number) ? null : number;
}
function compare(a, b, sign) {
  if (a === null || b === null) return (a === null) - (b === null);
  return sign * (typeof a === 'number' && typeof b === 'number' ? a - b : String(a).localeCompare(String(b)));
}
function units(body) {
  const found = [];
  for (const row of [...body.rows]) {
    if (row.classList.contains('aside') && found.length) found.at(-1).push(row); else found.push([row]);
  }
  return found;
}
function makeSortable(table) {
  const heads = [...table.tHead.rows[0].cells];
  heads.forEach((head, column) => {
    head.classList.add('sortable');
    head.tabIndex = 0;
    head.addEventListener('keydown', event => { if (event.key === 'Enter') head.click(); });
    head.addEventListener('click', () => {
      const sign = head.getAttribute('aria-sort') === 'ascending' ? -1 : 1;
      for (const other of heads) other.removeAttribute('aria-sort');
      head.setAttribute('aria-sort', sign > 0 ? 'ascending' : 'descending');
      const by = (a, b) => compare(key(a, column), key(b, column), sign);
      for (const body of table.tBodies) {
        units(body).sort((a, b) => by(a[0], b[0])).forEach(rows => body.append(...rows));
      }
      [...table.tBodies].sort((a, b) => by(a.rows[0], b.rows[0])).forEach(body => table.append(body));
    });
  });
}

// Search and choice of columns, above a table that is long or wide. A row is shown if it has all words of the search.
function addTools(table) {
  const heads = [...table.tHead.rows[0].cells], tools = make('div', { className: 'tools' });
  if (table.rows.length > 5) {
    const search = make('input', { type: 'search', placeholder: 'search rows', ariaLabel: 'search rows' });
    const shown = make('span', { className: 'quiet', ariaLive: 'polite' });
    search.addEventListener('input', () => {
      const words = search.value.toLowerCase().split(/\s+/);
      let count = 0, all = 0;
      for (const rows of [...table.tBodies].flatMap(units)) {
        const text = rows[0].textContent.toLowerCase(), hit = words.every(word => text.includes(word));
        rows.forEach(row => { row.hidden = !hit; });
        count += hit;
        all += 1;
      }
      shown.textContent = search.value ? `${count} of ${all} rows` : '';
    });
    tools.append(search, shown);
  }
  if (heads.length > 5) {
    const choice = make('details', {}, make('summary', { textContent: 'columns' }));
    heads.slice(1).forEach((head, i) => {
      const box = make('input', { type: 'checkbox', checked: true });
      box.addEventListener('change', () => {
        for (const row of table.rows) row.cells[i + 1].hidden = !box.checked;
      });
      choice.append(make('label', {}, box, ` ${head.textContent}`));
    });
    tools.append(choice);
  }
  if (tools.children.length) table.parentElement.before(tools);
}

// Figures. Plotly is unpacked when the first figure is needed.
let library = null;
function plotly() {
  library ??= (async () => {
    const packed = Uint8Array.from(atob(document.getElementById('plotly').textContent), c => c.charCodeAt(0));
    const stream = new Blob([packed]).stream().pipeThrough(new DecompressionStream('gzip'));
    document.head.append(make('script', { textContent: await new Response(stream).text() }));
    return window.Plotly;
  })();
  return library;
}
const colour = name => getComputedStyle(document.documentElement).getPropertyValue(`--${name}`).trim();
async function plot(box, traces, x, y, more = {}) {
  const axis = { gridcolor: colour('line'), zerolinecolor: colour('line'), automargin: true };
  const narrow = box.clientWidth < 700, below = narrow ? 22 * Math.min(traces.length, 30) : 0;
  const layout = {
    paper_bgcolor: colour('back'), plot_bgcolor: colour('back'), font: { color: colour('ink'), family: 'system-ui' },
    margin: { t: 30, r: 10, b: 50 + below, l: 60 }, xaxis: { ...axis, ...x }, yaxis: { ...axis, ...y },
    legend: narrow ? { orientation: 'h', y: -0.3, yanchor: 'top' } : {}, height: 400 + below, ...more,
  };
  box.dataset.traces = traces.length;
  return (await plotly()).react(box, traces, layout, { responsive: true, displaylogo: false });
}
const COLOURS = ['#0072B2', '#D55E00', '#009E73', '#CC79A7', '#E69F00', '#56B4E9', '#7F7F7F', '#8C6BB1'];
const DASHES = ['solid', 'dash', 'dot', 'dashdot'];
const MOST_SHOWN = 12;
function look(i) {
  return { color: COLOURS[i % COLOURS.length], dash: DASHES[Math.floor(i / COLOURS.length) % DASHES.length] };
}
const percent = (metric, span) => ({ title: { text: `${metric},<br>percent` }, range: span ?? undefined });

function drawCharts(chart, boxes) {
  const curves = chart.rows.map((row, i) => ({
    x: row.epochs, y: row.means, name: row.name, mode: row.epochs.length > 1 ? 'lines+markers' : 'markers',
    line: { ...look(i), width: 1.5 }, marker: { symbol: i, size: 6 }, visible: i < MOST_SHOWN || 'legendonly',
    error_y: { array: row.spreads, visible: row.spreads.some(Boolean), thickness: 1, width: 2 },
  }));
  plot(boxes[0], curves, { title: { text: 'epoch' } }, percent(chart.metric, chart.span));
  const points = chart.rows.map((row, i) => ({
    x: [row.size], y: [row.last], name: `${row.name} (${row.seeds})`, mode: 'markers',
    marker: { color: look(i).color, symbol: i, size: 10 }, visible: i < MOST_SHOWN || 'legendonly',
    error_y: { array: [row.spread], visible: row.spread > 0, thickness: 1 },
  }));
  const sizes = chart.rows.map(row => row.size).filter(size => size > 0);
  const log = Math.max(...sizes) > 5 * Math.min(...sizes);
  plot(boxes[1], points, { title: { text: 'active parameters of the adapter' }, type: log ? 'log' : 'linear' },
    percent(`${chart.metric}, last`, chart.span));
}

// The ranks at each event: a row for each layer, a column for each kind of matrix. The slider and `play` go through the
// events.
function drawRanks(ranks, box) {
  const all = ranks.frames.flat(2).filter(value => value !== null);
  const slider = make('input', { type: 'range', min: 0, max: ranks.frames.length - 1, ariaLabel: 'rank event' });
  slider.value = slider.max;
  const step = make('output'), area = make('div', { className: 'plot' });
  const button = make('button', { type: 'button', textContent: 'play' });
  const show = () => {
    const at = Number(slider.value);
    step.textContent = ` ${at ? `after step ${ranks.steps[at]}` : 'before the first event'}`;
    const cells = {
      type: 'heatmap', z: ranks.frames[at], x: ranks.kinds, y: ranks.frames[at].map((_, i) => `L${i}`),
      zmin: Math.min(...all), zmax: Math.max(...all), colorscale: 'Cividis', texttemplate: '%{z}',
      hovertemplate: '%{y} %{x}: rank %{z}<extra></extra>', xgap: 1, ygap: 1,
    };
    const height = Math.max(320, 130 + 24 * ranks.frames[at].length);
    return plot(area, [cells], {}, { autorange: 'reversed', type: 'category' }, { height });
  };
  let timer = null;
  const stop = () => { clearInterval(timer); timer = null; button.textContent = 'play'; };
  button.addEventListener('click', () => {
    if (timer !== null) return stop();
    if (slider.value === slider.max) slider.value = 0;
    button.textContent = 'stop';
    timer = setInterval(() => {
      if (!box.isConnected || slider.value === slider.max) return stop();
      slider.value = Number(slider.value) + 1;
      show();
    }, 250);
    show();
  });
  slider.addEventListener('input', () => { stop(); show(); });
  box.replaceChildren(make('p', {}, button, ' ', slider, step), area);
  show();
}

// What a row and a run lead to.
function open(...content) {
  const close = make('button', { type: 'button', textContent: 'close', autofocus: true });
  close.addEventListener('click', () => dialog.close());
  dialog.replaceChildren(close, ...content);
  if (!dialog.open) dialog.showModal();
  dialog.scrollTop = 0;
}
function runButton(i, text) {
  const button = make('button', { type: 'button', className: 'link', textContent: text });
  button.addEventListener('click', () => showRun(i));
  return button;
}
function showRow(row) {
  const list = make('ul');
  data.runs.forEach((run, i) => {
    if (Object.entries(row).every(([name, value]) => run[name] === value)) {
      const last = run.last === null ? run.status : `${run.metric} ${run.last}`;
      list.append(make('li', {}, runButton(i, run.path), ` ${last}`));
    }
  });
  open(make('h2', { textContent: `Runs of ${row.method}, ${row.variant}` }), list);
}
function showRun(i) {
  const run = data.runs[i], facts = make('dl'), parts = [make('h2', { textContent: run.path }), facts];
  for (const [name, value] of Object.entries(run.facts)) {
    facts.append(make('dt', { textContent: name }), make('dd', { textContent: value }));
  }
  const links = Object.entries(run.links).map(([name, href]) => make('a', { href, textContent: name }));
  parts.push(make('p', {}, ...links.flatMap(link => [link, ' · ']).slice(0, -1)));
  const text = (title, content) => parts.push(make('h3', { textContent: title }), make('pre', { textContent: content }));
  if (run.command) text('Command that repeats it', run.command);
  if (run.log) text('End of its log', run.log);
  const differs = Object.entries(run.differs).map(pair => pair.join(' = '));
  if (differs.length) {
    const summary = make('summary', { textContent: `${differs.length} settings that differ between the runs` });
    parts.push(make('details', {}, summary, make('pre', { textContent: differs.join('\n') })));
  }
  open(...parts);
  if (run.history.length) {
    const column = at => run.history.map(row => row[at]);
    const curve = (at, name) => ({ x: column(0), y: column(at), name, mode: 'lines+markers' });
    const score = make('div', { className: 'plot' }), loss = make('div', { className: 'plot' });
    dialog.append(make('h3', { textContent: 'Curves' }), score, loss);
    plot(score, [curve(1, run.metric)], { title: { text: 'step' } }, percent(run.metric, run.span));
    plot(loss, [curve(2, 'training'), curve(3, 'evaluation')], { title: { text: 'step' } }, { title: { text: 'loss' } });
  }
  if (data.ranks[i]) {
    const box = make('div');
    dialog.append(make('h3', { textContent: 'Ranks' }), box);
    drawRanks(data.ranks[i], box);
  }
}

for (const table of document.querySelectorAll('table')) {
  addTools(table);
  makeSortable(table);
}
for (const row of document.querySelectorAll('tr[data-method]')) {
  const names = { ...row.closest('table').dataset, ...row.dataset }, cell = row.cells[0];
  const button = make('button', { type: 'button', className: 'link', textContent: cell.textContent });
  button.addEventListener('click', () => showRow(names));
  cell.replaceChildren(button);
}
document.querySelectorAll('#runs tbody tr').forEach((row, i) => {
  row.cells[0].replaceChildren(runButton(i, row.cells[0].textContent));
});
const draw = () => {
  for (const select of document.querySelectorAll('#figures select')) select.dispatchEvent(new Event('change'));
};
for (const select of document.querySelectorAll('#figures select')) {
  const boxes = select.closest('figure').querySelectorAll('.plot');
  select.addEventListener('change', () => {
    if (select.name === 'ranks') drawRanks(data.ranks[select.value], boxes[0]);
    else drawCharts(data.charts[select.value], boxes);
  });
}
// Figures are drawn when they come near the screen, so that the tables are there at once.
const figures = document.getElementById('figures');
if (figures) {
  new IntersectionObserver((entries, observer) => {
    if (entries.some(entry => entry.isIntersecting)) { observer.disconnect(); draw(); }
  }, { rootMargin: '600px' }).observe(figures);
  matchMedia('(prefers-color-scheme: dark)').addEventListener('change', draw);
}
