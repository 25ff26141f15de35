// Socket.IO 5 over a native WebSocket: the few frames that a phone needs.

const RECONNECT_MS = 1000;

/** Connect, and again whenever the transport closes. on.event(name, payload), on.link(text), on.refused(failure body). */
export function connect(url, token, on) {
  let socket;
  let closed = false;
  const open = () => {
    socket = new WebSocket(`${url}/socket.io/?EIO=4&transport=websocket`);
    socket.onmessage = ({ data }) => hear(String(data));
    socket.onclose = () => {
      on.link("offline");
      if (!closed) setTimeout(() => closed || open(), RECONNECT_MS);
    };
  };
  const hear = (packet) => {
    if (packet.startsWith("0")) socket.send(`40${JSON.stringify({ token })}`);
    else if (packet === "2") socket.send("3");
    else if (packet.startsWith("40")) on.link("connected");
    else if (packet.startsWith("42")) on.event(...JSON.parse(packet.slice(2)));
    else if (packet.startsWith("44")) {
      closed = true;
      on.refused(JSON.parse(packet.slice(2)).data);
    } else if (packet === "41") {
      closed = true;
      on.link("disconnected by the server");
    }
  };
  open();
  return () => {
    closed = true;
    socket.close();
  };
}
