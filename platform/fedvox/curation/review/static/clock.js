// Time that a case is in front of somebody's eyes: it stops while the page is hidden.
export class Clock {
  constructor(display) {
    this.display = display;
    this.spent = 0; // milliseconds, up to `since`
    this.since = null;
    this.running = false;
    document.addEventListener("visibilitychange", () => this.look());
    setInterval(() => this.show(), 1000);
  }

  start() { this.spent = 0; this.running = true; this.since = document.hidden ? null : performance.now(); this.show(); }

  stop() { this.spent = this.seconds() * 1000; this.running = false; this.since = null; this.show(); }

  look() {
    if (!this.running) return;
    if (document.hidden) { this.spent = this.seconds() * 1000; this.since = null; } else if (this.since === null) this.since = performance.now();
  }

  seconds() { return (this.spent + (this.since === null ? 0 : performance.now() - this.since)) / 1000; }

  show() {
    const seconds = Math.floor(this.seconds());
    this.display.textContent = `${Math.floor(seconds / 60)}:${String(seconds % 60).padStart(2, "0")}`;
  }
}
