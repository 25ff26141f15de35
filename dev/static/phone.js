// One phone: a demo member, over the API and the live gateway.

import { connect } from "./socket.js";

const PLACES = [
  { name: "Harbour", x: 62, y: 128, latitude: 52.508, longitude: 13.382 },
  { name: "Old Town", x: 128, y: 62, latitude: 52.522, longitude: 13.401 },
  { name: "Park", x: 208, y: 118, latitude: 52.511, longitude: 13.428 },
  { name: "Station", x: 262, y: 48, latitude: 52.526, longitude: 13.447 },
];
const NEARBY_MS = 2000;
const MARGIN_MS = 500; // so close to the end the answer might be a refusal
const SVG = "http://www.w3.org/2000/svg";

export class Phone {
  constructor(root, demo) {
    this.root = root;
    this.demo = demo;
    this.profile = this.session = this.match = null;
    root.append(document.querySelector("#phone").content.cloneNode(true));
    this.drawMap();
    const select = this.find(".member");
    for (const { id, name } of demo.members) select.append(new Option(name, id));
    select.value = root.dataset.member;
    select.onchange = () => this.signIn(select.value);
    this.find(".profile").onsubmit = (event) => this.submit(event, () => this.createProfile());
    this.find(".start").onsubmit = (event) => this.submit(event, () => this.goLive());
    this.find(".extend").onclick = () => this.tell("POST", "session/extend", { additionalMinutes: 15 });
    this.find(".end").onclick = () => this.tell("POST", "session/end");
    for (const answer of ["accept", "decline"]) this.find(`.${answer}`).onclick = () => this.answer(answer);
    setInterval(() => this.tick(), 200);
    setInterval(() => this.loadNearby(), NEARBY_MS);
    this.signIn(select.value);
  }

  find(selector) {
    return this.root.querySelector(selector);
  }

  async signIn(id) {
    this.disconnect?.();
    this.member = this.demo.members.find((member) => member.id === id);
    this.profile = this.session = this.match = null;
    this.say("");
    this.find(".link").textContent = "connecting";
    await this.loadProfile();
    this.disconnect = connect(this.demo.live, this.member.token, {
      event: (name, payload) => this.hear(name, payload),
      link: (text) => { this.find(".link").textContent = text; },
      refused: (failure) => { this.find(".link").textContent = failure.code; this.say(failure.error); },
    });
  }

  hear(name, payload) {
    switch (name) {
      case "after_hours:state":
        this.setSession(payload.session);
        this.match = payload.match;
        break;
      case "after_hours:session_started":
      case "after_hours:session_extended":
        this.say("");
        this.setSession({ id: payload.sessionId, expiresAt: payload.expiresAt });
        break;
      case "after_hours:session_expiring":
        this.say(`${payload.minutesRemaining} minutes left. Stay longer?`);
        break;
      case "after_hours:session_ended":
      case "after_hours:session_expired":
        if (this.session?.id === payload.sessionId) this.setSession(null);
        this.match = null;
        this.say(name.endsWith("expired") ? "Time is up. Nobody sees you any more." : "You have left. Nobody sees you any more.");
        break;
      case "after_hours:match":
        this.match = { id: payload.matchId, accepted: false, ...payload };
        break;
      case "after_hours:match_accepted":
        if (this.match?.id === payload.matchId) this.match.autoDeclineAt = null;
        this.say(`${this.match?.profile.name ?? "Your match"} has accepted.`);
        break;
      case "after_hours:match_expired":
        if (this.match?.id === payload.matchId) this.match = null;
        break;
      case "after_hours:no_matches":
        this.find(".searching").textContent = "Nobody fits yet. Whoever comes will find you.";
    }
    this.show();
  }

  setSession(session) {
    if (session && this.session?.id !== session.id) this.find(".searching").textContent = "Looking for somebody who fits …";
    this.session = session;
    this.loadNearby();
  }

  async loadProfile() {
    const answer = await this.ask("GET", "profile");
    this.profile = answer.profile ?? null;
    this.lacksProfile = answer.code === "PROFILE_NOT_FOUND";
    if (!answer.success && !this.lacksProfile) this.say(answer.error);
    this.show();
  }

  async createProfile() {
    const form = this.find(".profile");
    await this.tell("POST", "profile", { description: form.elements.description.value });
    await this.tell("POST", "preferences", {});
    const [photo] = form.elements.photo.files;
    if (photo) {
      const body = new FormData();
      body.append("photo", photo);
      await this.tell("POST", "profile/photo", body);
    }
    await this.loadProfile();
  }

  async goLive() {
    const form = this.find(".start");
    const { latitude, longitude } = PLACES[Number(form.elements.place.value)];
    await this.tell("POST", "session/start", { duration: Number(form.elements.minutes.value), latitude, longitude });
  }

  async answer(verb) {
    const { id } = this.match;
    const answer = await this.tell("POST", `match/${verb}`, { matchId: id });
    if (answer.success && this.match?.id === id) this.match = verb === "accept" ? answer.match : null;
    this.show();
  }

  async loadNearby() {
    if (!this.session || new Date(this.session.expiresAt) - Date.now() < MARGIN_MS) return;
    const answer = await this.ask("GET", "nearby");
    const entries = (answer.members ?? []).map((member) => {
      const entry = document.createElement("li");
      const photo = new Image(40, 40);
      photo.alt = "";
      if (member.thumbnailUrl) photo.src = member.thumbnailUrl;
      const text = document.createElement("span");
      text.textContent = `${member.name}, ${member.age}, within ${member.distanceKm} km`;
      entry.append(photo, text);
      return entry;
    });
    this.find(".nearby").replaceChildren(...(entries.length ? entries : ["Nobody yet."]));
  }

  /** Ask the API, and say what went wrong. */
  async tell(method, path, body) {
    const answer = await this.ask(method, path, body);
    if (!answer.success) this.say(answer.error);
    return answer;
  }

  async ask(method, path, body) {
    const headers = { Authorization: `Bearer ${this.member.token}` };
    const isForm = body instanceof FormData;
    if (body && !isForm) headers["Content-Type"] = "application/json";
    try {
      const answer = await fetch(`${this.demo.api}/${path}`, { method, headers, body: isForm ? body : body && JSON.stringify(body) });
      return await answer.json();
    } catch {
      return { success: false, error: "The service cannot be reached." };
    }
  }

  async submit(event, send) {
    event.preventDefault();
    const button = event.target.querySelector("button");
    button.disabled = true;
    await send();
    button.disabled = false;
  }

  say(text) {
    const banner = this.find(".banner");
    banner.textContent = text;
    banner.hidden = !text;
  }

  show() {
    const { profile, session, match } = this;
    this.find(".profile").hidden = !this.lacksProfile;
    this.find(".me").hidden = !profile;
    this.find(".start").hidden = !profile || Boolean(session);
    this.find(".live").hidden = !session;
    if (profile) fill(this.find(".me"), profile, profile.photoUrl);
    this.find(".match").hidden = !match;
    this.find(".searching").hidden = Boolean(match);
    if (match) {
      fill(this.find(".match"), match.profile, match.profile.photoUrl);
      this.find(".age").textContent = match.profile.age;
      this.find(".distance").textContent = match.profile.distanceKm;
      this.find(".accept").hidden = match.accepted;
    }
    this.tick();
  }

  tick() {
    if (this.session) this.find(".countdown").textContent = clock(this.session.expiresAt);
    if (this.match) {
      const { accepted, autoDeclineAt, expiresAt } = this.match;
      this.find(".answer").textContent = autoDeclineAt ? `Answer within ${clock(autoDeclineAt)}.`
        : `${accepted ? "You have accepted. " : ""}The match lasts ${clock(expiresAt)}.`;
    }
  }

  drawMap() {
    const map = svg("svg", { viewBox: "0 0 320 180", role: "presentation" });
    const filter = svg("filter", { id: `blur-${this.root.dataset.member}` });
    filter.append(svg("feGaussianBlur", { stdDeviation: 4 }));
    map.append(filter, svg("path", { class: "river", d: "M-5 150 C 70 90, 150 190, 325 140" }));
    for (const d of ["M0 40 H320", "M0 90 L320 84", "M60 0 L70 180", "M150 0 V180", "M236 0 L224 180", "M0 0 L320 170"]) map.append(svg("path", { d }));
    const places = this.find(".places");
    PLACES.forEach((place, number) => {
      const label = document.createElement("label");
      const radio = Object.assign(document.createElement("input"), { type: "radio", name: "place", value: number, checked: number === 0 });
      label.append(radio, ` ${place.name}`);
      places.append(label);
      const circle = svg("circle", { cx: place.x, cy: place.y, r: 30, filter: `url(#${filter.id})` });
      circle.onclick = () => { radio.checked = true; mark(); };
      const name = svg("text", { x: place.x, y: place.y + 3 });
      name.textContent = place.name;
      map.append(circle, name);
    });
    const mark = () => map.querySelectorAll("circle").forEach((circle, number) =>
      circle.classList.toggle("chosen", places.querySelectorAll("input")[number].checked));
    places.onchange = mark;
    this.find(".map").append(map);
    mark();
  }
}

function fill(card, profile, photo) {
  card.querySelector(".name").textContent = profile.name;
  card.querySelector(".description").textContent = profile.description ?? "";
  const image = card.querySelector("img");
  if (photo && image.dataset.of !== photo.split("?")[0]) {
    image.src = photo;
    image.dataset.of = photo.split("?")[0];
  }
  image.hidden = !photo;
}

function clock(moment) {
  const seconds = Math.max(0, Math.ceil((new Date(moment) - Date.now()) / 1000));
  return `${Math.floor(seconds / 60)}:${String(seconds % 60).padStart(2, "0")}`;
}

function svg(name, attributes) {
  const element = document.createElementNS(SVG, name);
  for (const [key, value] of Object.entries(attributes)) element.setAttribute(key, value);
  return element;
}
