// Three linked planes of one volume. The server sends voxels, pixels are computed here: window, level and opacity need no request.
//
// Voxels are (z, y, x), RAS+: x grows to the patient's right, y to the front, z to the head. Pictures show the patient's
// right on the left, the front (axial) or the head (others) on top, and sagittal planes with the face to the right.

const AXES = [
  { name: "axial", rows: 1, columns: 2, edges: ["R", "L", "A", "P"] },
  { name: "coronal", rows: 0, columns: 2, edges: ["R", "L", "S", "I"] },
  { name: "sagittal", rows: 0, columns: 1, edges: ["P", "A", "S", "I"] },
];
const KINDS = { uint8: Uint8Array, int8: Int8Array, uint16: Uint16Array, int16: Int16Array, float32: Float32Array };
const MOST_SLICES = 360;

// Slices that were fetched; the least recently used are forgotten first.
export class SliceCache {
  constructor(onArrival, onFailure) {
    this.found = new Map();
    this.underway = new Map();
    this.onArrival = onArrival;
    this.onFailure = onFailure;
  }

  clear() { this.found.clear(); }

  get(address) {
    const slice = this.found.get(address);
    if (slice) {
      this.found.delete(address);
      this.found.set(address, slice);
      return slice;
    }
    if (!this.underway.has(address)) this.underway.set(address, this.fetch(address));
    return null;
  }

  async fetch(address) {
    try {
      const answer = await fetch(address, { credentials: "same-origin" });
      if (!answer.ok) throw new Error(await answer.text());
      const kind = KINDS[answer.headers.get("x-voxel-type")];
      this.found.set(address, new kind(await answer.arrayBuffer()));
      while (this.found.size > MOST_SLICES) this.found.delete(this.found.keys().next().value);
      this.onArrival();
    } catch (error) {
      this.onFailure(error);
    } finally {
      this.underway.delete(address);
    }
  }
}

// Paints one plane into RGBA pixels. Layers: {voxels, opacity, outline}, drawn in order; `difference`: {a, b} marks where they differ;
// `heat`: 0 to 255, where the proposers are at odds.
export function paint(pixels, rows, columns, flipColumns, image, window_, layers, colors, difference, heat) {
  const low = window_.level - window_.width / 2;
  const gain = 255 / Math.max(window_.width, 1e-6);
  for (let r = 0; r < rows; r++) {
    const row = rows - 1 - r; // the front, or the head, on top
    for (let c = 0; c < columns; c++) {
      const column = flipColumns ? columns - 1 - c : c;
      const at = row * columns + column;
      let red, green, blue;
      red = green = blue = image ? Math.min(255, Math.max(0, (image[at] - low) * gain)) : 0;
      for (const layer of layers) {
        const value = layer.voxels[at];
        if (!value) continue;
        const edge = isEdge(layer.voxels, value, at, row, column, rows, columns);
        if (layer.outline && !edge) continue;
        const share = layer.outline ? Math.min(1, layer.opacity * 2) : edge ? Math.min(1, layer.opacity * 1.8) : layer.opacity;
        const color = colors[value] || [255, 255, 255];
        red += (color[0] - red) * share;
        green += (color[1] - green) * share;
        blue += (color[2] - blue) * share;
      }
      if (heat) {
        const share = 0.85 * heat[at] / 255;
        red += (255 - red) * share;
        green += (40 - green) * share;
        blue += (140 - blue) * share;
      }
      if (difference && difference.a[at] !== difference.b[at] && (row + column) % 2 === 0) red = green = blue = 255;
      const to = (r * columns + c) * 4;
      pixels[to] = red;
      pixels[to + 1] = green;
      pixels[to + 2] = blue;
      pixels[to + 3] = 255;
    }
  }
}

function isEdge(voxels, value, at, row, column, rows, columns) {
  return (column > 0 && voxels[at - 1] !== value) || (column < columns - 1 && voxels[at + 1] !== value)
    || (row > 0 && voxels[at - columns] !== value) || (row < rows - 1 && voxels[at + columns] !== value);
}

export class Plane {
  // `view` is shared by the three: {shape, spacing, cross, window, zoom, layers(), difference(), heat(), colors, address(), cache}.
  constructor(canvas, axis, view) {
    this.canvas = canvas;
    this.axis = axis;
    this.view = view;
    this.facts = AXES[axis];
    this.picture = document.createElement("canvas");
  }

  get name() { return this.facts.name; }

  size() {
    const { shape, spacing } = this.view;
    const { rows, columns } = this.facts;
    return { rows: shape[rows], columns: shape[columns], high: spacing[rows], wide: spacing[columns] };
  }

  // Where the picture lies on the canvas: fitted, or zoomed about the crosshair.
  frame() {
    const { rows, columns, high, wide } = this.size();
    const canvas = this.canvas;
    const fit = Math.min(canvas.width / (columns * wide), canvas.height / (rows * high)) * this.view.zoom;
    const across = columns * wide * fit, down = rows * high * fit;
    const [px, py] = this.toPicture(this.view.cross);
    const x = this.view.zoom === 1 ? (canvas.width - across) / 2 : canvas.width / 2 - px * wide * fit;
    const y = this.view.zoom === 1 ? (canvas.height - down) / 2 : canvas.height / 2 - py * high * fit;
    return { x, y, across, down, stepX: wide * fit, stepY: high * fit };
  }

  // Voxel -> column and row of the picture, at the voxel's middle.
  toPicture(voxel) {
    const { rows, columns } = this.size();
    const column = voxel[this.facts.columns], row = voxel[this.facts.rows];
    return [this.axis === 2 ? column + 0.5 : columns - column - 0.5, rows - row - 0.5];
  }

  // A place on the canvas -> the voxel there, on this plane.
  toVoxel(x, y) {
    const { rows, columns } = this.size();
    const frame = this.frame();
    const across = Math.floor((x - frame.x) / frame.stepX), down = Math.floor((y - frame.y) / frame.stepY);
    const voxel = [...this.view.cross];
    voxel[this.facts.columns] = clamp(this.axis === 2 ? across : columns - 1 - across, columns);
    voxel[this.facts.rows] = clamp(rows - 1 - down, rows);
    return voxel;
  }

  // The voxel one step aside on the screen.
  moved(dx, dy, dz) {
    const voxel = [...this.view.cross];
    voxel[this.facts.columns] += this.axis === 2 ? dx : -dx;
    voxel[this.facts.rows] -= dy;
    voxel[this.axis] += dz;
    return voxel.map((value, axis) => clamp(value, this.view.shape[axis]));
  }

  draw() {
    const { view, axis, canvas } = this;
    const index = view.cross[axis];
    const image = view.cache.get(view.imageAddress(axis, index));
    const layers = view.layers(axis, index), difference = view.difference(axis, index), heat = view.heat(axis, index);
    if (image === null || layers === null || difference === null || heat === null) return false;
    const { rows, columns } = this.size();
    this.picture.width = columns;
    this.picture.height = rows;
    const context = this.picture.getContext("2d");
    const pixels = context.createImageData(columns, rows);
    paint(pixels.data, rows, columns, axis !== 2, image, view.window, layers, view.colors, difference, heat);
    context.putImageData(pixels, 0, 0);
    const target = canvas.getContext("2d");
    const frame = this.frame();
    target.imageSmoothingEnabled = false;
    target.fillStyle = "#000";
    target.fillRect(0, 0, canvas.width, canvas.height);
    target.drawImage(this.picture, frame.x, frame.y, frame.across, frame.down);
    this.drawCross(target, frame);
    this.drawEdges(target);
    canvas.dataset.drawn = `${view.caseId}/${index}`;
    return true;
  }

  drawCross(target, frame) {
    const [px, py] = this.toPicture(this.view.cross);
    const x = frame.x + px * frame.stepX, y = frame.y + py * frame.stepY, gap = 9;
    target.strokeStyle = "#ffe066";
    target.lineWidth = 1;
    target.beginPath();
    for (const [x0, y0, x1, y1] of [[frame.x, y, x - gap, y], [x + gap, y, frame.x + frame.across, y],
      [x, frame.y, x, y - gap], [x, y + gap, x, frame.y + frame.down]]) {
      target.moveTo(x0, y0);
      target.lineTo(x1, y1);
    }
    target.stroke();
  }

  drawEdges(target) {
    const [left, right, top, bottom] = this.facts.edges;
    const { width, height } = this.canvas;
    target.fillStyle = "#b9c4ca";
    target.font = "13px system-ui, sans-serif";
    target.textBaseline = "middle";
    target.textAlign = "center";
    for (const [letter, x, y] of [[left, 10, height / 2], [right, width - 10, height / 2], [top, width / 2, 10], [bottom, width / 2, height - 10]]) {
      target.fillText(letter, x, y);
    }
  }
}

function clamp(value, size) { return Math.min(size - 1, Math.max(0, value)); }
