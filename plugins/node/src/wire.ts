/**
 * Frames and FlatBuffers of the ext-plugin protocol: only bytes, no sockets and no plugins.
 *
 * A frame is one byte of type, three bytes of length (big endian) and one FlatBuffer. The reader looks at nothing that
 * it is not asked for and takes no offset on trust: what points outside of the buffer throws `BadBuffer`. The writer
 * lays parents before their children, which FlatBuffers allows and which needs no second pass.
 */

export const ERROR = 0
export const PREPARE_CONF = 1
export const HTTP_REQ_CALL = 2
export const EXTRA_INFO = 3
export const HTTP_RESP_CALL = 4

export const BAD_REQUEST = 0
export const SERVICE_UNAVAILABLE = 1
export const CONF_TOKEN_NOT_FOUND = 2

/** The length field of a frame has 24 bits. */
export const MAX_PAYLOAD = (1 << 24) - 1

export const METHODS = [
  'GET', 'HEAD', 'POST', 'PUT', 'DELETE', 'MKCOL', 'COPY', 'MOVE',
  'OPTIONS', 'PROPFIND', 'PROPPATCH', 'LOCK', 'UNLOCK', 'PATCH', 'TRACE',
]

/** A name with its value; null for a value that is not there. */
export type Pair = [name: string, value: string | null]

/** The peer sent bytes that are not what the protocol says. */
export class BadBuffer extends Error {}

/** A frame cannot carry what should be sent. */
export class TooLarge extends Error {}

// ------------------------------------------------------------------------------------------------------------ reading

/** One table of a buffer. Its methods take the number of a field. */
export class Table {
  private readonly vtable: number
  private readonly count: number

  private constructor(private readonly buffer: Buffer, private readonly at: number) {
    this.vtable = at - i32(buffer, at)
    const size = u16(buffer, this.vtable)
    if (size < 4 || size % 2 !== 0) throw new BadBuffer('a vtable has an impossible size')
    this.count = (size - 4) / 2
  }

  /** The root of a buffer. */
  static root(buffer: Buffer): Table {
    return new Table(buffer, u32(buffer, 0))
  }

  private place(field: number): number {
    if (field >= this.count) return 0
    const offset = u16(this.buffer, this.vtable + 4 + 2 * field)
    return offset === 0 ? 0 : this.at + offset
  }

  u8(field: number): number {
    const place = this.place(field)
    if (place === 0) return 0
    if (place >= this.buffer.length) throw new BadBuffer('a field lies outside of the buffer')
    return this.buffer[place]
  }

  u16(field: number): number {
    const place = this.place(field)
    return place === 0 ? 0 : u16(this.buffer, place)
  }

  u32(field: number): number {
    const place = this.place(field)
    return place === 0 ? 0 : u32(this.buffer, place)
  }

  /** A vector of bytes, or the bytes of a text; a view, no copy. */
  blob(field: number): Buffer | null {
    const place = this.place(field)
    if (place === 0) return null
    const start = vector(this.buffer, place, 1)
    return this.buffer.subarray(start, start + u32(this.buffer, start - 4))
  }

  text(field: number): string | null {
    const place = this.place(field)
    if (place === 0) return null
    const start = vector(this.buffer, place, 1)
    return this.buffer.toString('utf8', start, start + u32(this.buffer, start - 4))
  }

  table(field: number): Table | null {
    const place = this.place(field)
    return place === 0 ? null : new Table(this.buffer, place + u32(this.buffer, place))
  }

  /** A vector of TextEntry. */
  pairs(field: number): Pair[] {
    const place = this.place(field)
    if (place === 0) return []
    const start = vector(this.buffer, place, 4)
    const count = u32(this.buffer, start - 4)
    const found: Pair[] = new Array(count)
    for (let index = 0; index < count; index++) {
      const slot = start + 4 * index
      const entry = new Table(this.buffer, slot + u32(this.buffer, slot))
      found[index] = [entry.text(0) ?? '', entry.text(1)]
    }
    return found
  }
}

function u16(buffer: Buffer, at: number): number {
  if (at < 0 || at + 2 > buffer.length) throw new BadBuffer('a number lies outside of the buffer')
  return buffer[at] | (buffer[at + 1] << 8)
}

function u32(buffer: Buffer, at: number): number {
  if (at < 0 || at + 4 > buffer.length) throw new BadBuffer('a number lies outside of the buffer')
  return (buffer[at] | (buffer[at + 1] << 8) | (buffer[at + 2] << 16) | (buffer[at + 3] << 24)) >>> 0
}

function i32(buffer: Buffer, at: number): number {
  return u32(buffer, at) | 0
}

/** Where a vector's elements begin; they lie inside of the buffer. */
function vector(buffer: Buffer, place: number, width: number): number {
  const start = place + u32(buffer, place)
  const length = u32(buffer, start)
  if (start + 4 + length * width > buffer.length) throw new BadBuffer('a vector is longer than the buffer')
  return start + 4
}

// ------------------------------------------------------------------------------------------------------------ writing

// Frames are built here, one at a time, and copied out: nothing waits between the first byte and the last.
let scratch = Buffer.alloc(16384)
let end = 0

const SCRATCH_KEPT = 1 << 20

function reserve(count: number): void {
  if (end + count <= scratch.length) return
  if (end + count > MAX_PAYLOAD + 4) throw new TooLarge(`a frame carries at most ${MAX_PAYLOAD} bytes`)
  const larger = Buffer.alloc(Math.max(end + count, Math.min(scratch.length * 2, MAX_PAYLOAD + 4)))
  scratch.copy(larger, 0, 0, end)
  scratch = larger
}

/** Begins a frame: its head, and the offset of the root. What is aligned in the frame is aligned in the buffer. */
function begin(): void {
  if (scratch.length > SCRATCH_KEPT) scratch = Buffer.alloc(16384)
  end = 8
}

function finish(kind: number): Buffer {
  const length = end - 4
  if (length > MAX_PAYLOAD) throw new TooLarge(`${length} bytes do not fit into a frame of at most ${MAX_PAYLOAD}`)
  scratch.writeUInt32BE(((kind << 24) | length) >>> 0, 0)
  return Buffer.from(scratch.subarray(0, end))
}

/** The width of a field in its table. */
type Width = 0 | 1 | 2 | 4

/** Appends a table whose fields have these widths (0: left out), points to it from `slot`, gives the fields' places. */
function table(slot: number, widths: readonly Width[]): number[] {
  const vtableSize = 4 + 2 * widths.length
  // the vtable ends where the table begins, at a multiple of four
  const vtable = end + (vtableSize % 4)
  const at = vtable + vtableSize
  let size = 4
  const places: number[] = []
  reserve(vtableSize + 8 + 4 * widths.length + 4)
  for (let index = 0; index < widths.length; index++) {
    const width = widths[index]
    if (width === 0) {
      places.push(0)
      scratch.writeUInt16LE(0, vtable + 4 + 2 * index)
      continue
    }
    size += (width - (size % width)) % width
    scratch.writeUInt16LE(size, vtable + 4 + 2 * index)
    places.push(at + size)
    size += width
  }
  scratch.writeUInt16LE(vtableSize, vtable)
  scratch.writeUInt16LE(size, vtable + 2)
  scratch.writeInt32LE(vtableSize, at)
  const next = at + size + ((4 - (size % 4)) % 4)
  scratch.fill(0, at + 4, next)
  if (vtable > end) scratch.fill(0, end, vtable)
  scratch.writeUInt32LE(at - slot, slot)
  end = next
  return places
}

/** Appends a text: its length, its bytes, a zero, up to a multiple of four. */
function appendText(value: string): void {
  const most = value.length * 3
  reserve(most + 8)
  const length = scratch.write(value, end + 4, 'utf8')
  scratch.writeUInt32LE(length, end)
  const stop = end + 4 + length
  end = stop + 4 - (stop % 4)
  scratch.fill(0, stop, end)
}

function text(slot: number, value: string): void {
  scratch.writeUInt32LE(end - slot, slot)
  appendText(value)
}

function blob(slot: number, value: Uint8Array): void {
  reserve(value.length + 8)
  scratch.writeUInt32LE(end - slot, slot)
  scratch.writeUInt32LE(value.length, end)
  scratch.set(value, end + 4)
  const stop = end + 4 + value.length
  end = stop + 4 - (stop % 4)
  scratch.fill(0, stop, end)
}

/** Appends a vector of TextEntry. */
function pairs(slot: number, entries: readonly Pair[]): void {
  reserve(4 + 4 * entries.length + 16)
  scratch.writeUInt32LE(end - slot, slot)
  scratch.writeUInt32LE(entries.length, end)
  let entry = end + 4
  end = entry + 4 * entries.length
  // two vtables serve all entries: one with a value and one without, padded to eight bytes
  const full = end
  for (const number of [8, 12, 4, 8, 6, 8, 4, 0]) end = scratch.writeUInt16LE(number, end)
  for (const [name, value] of entries) {
    reserve(12)
    const at = end
    scratch.writeUInt32LE(at - entry, entry)
    entry += 4
    scratch.writeInt32LE(value === null ? at - full - 8 : at - full, at)
    end += value === null ? 8 : 12
    text(at + 4, name)
    if (value !== null) text(at + 8, value)
  }
}

// ----------------------------------------------------------------------------------------------------- whole messages

function one(kind: number, width: Width, value: number): Buffer {
  begin()
  const [place] = table(4, [width])
  scratch.writeUIntLE(value, place, width)
  return finish(kind)
}

/** Err.Resp */
export function error(code: number): Buffer {
  return one(ERROR, 1, code)
}

/** PrepareConf.Resp */
export function confToken(token: number): Buffer {
  return one(PREPARE_CONF, 4, token)
}

/** HTTPReqCall.Resp without an action */
export function requestUnchanged(id: number): Buffer {
  return one(HTTP_REQ_CALL, 4, id)
}

/** HTTPRespCall.Resp that changes nothing */
export function responseUnchanged(id: number): Buffer {
  return one(HTTP_RESP_CALL, 4, id)
}

/** Begins HTTPReqCall.Resp; gives the slot of the action. */
function action(id: number, kind: number): number {
  begin()
  const [idAt, kindAt, actionAt] = table(4, [4, 1, 4])
  scratch.writeUInt32LE(id, idAt)
  scratch[kindAt] = kind
  return actionAt
}

/** HTTPReqCall.Resp with a Stop; what is empty is left out. */
export function stop(id: number, status: number, headers: readonly Pair[], body: Uint8Array | null): Buffer {
  const slot = action(id, 1)
  const places = table(slot, [2, headers.length ? 4 : 0, body?.length ? 4 : 0])
  scratch.writeUInt16LE(status, places[0])
  if (headers.length) pairs(places[1], headers)
  if (body?.length) blob(places[2], body)
  return finish(HTTP_REQ_CALL)
}

/** HTTPReqCall.Resp with a Rewrite; what is empty is left out. */
export function rewrite(
  id: number,
  path: string | null,
  headers: readonly Pair[],
  args: readonly Pair[],
  respHeaders: readonly Pair[],
  body: Uint8Array | null,
): Buffer {
  const slot = action(id, 2)
  const lists = [headers, args, respHeaders]
  const widths = lists.map((list): Width => (list.length ? 4 : 0))
  const places = table(slot, [path === null ? 0 : 4, ...widths, body?.length ? 4 : 0])
  if (path !== null) text(places[0], path)
  lists.forEach((list, index) => list.length && pairs(places[1 + index], list))
  if (body?.length) blob(places[4], body)
  return finish(HTTP_REQ_CALL)
}

/** HTTPRespCall.Resp; what is empty is left out, and a status of 0 means the upstream's. */
export function responseChanged(id: number, status: number, headers: readonly Pair[], body: Uint8Array | null): Buffer {
  begin()
  const places = table(4, [4, status ? 2 : 0, headers.length ? 4 : 0, body?.length ? 4 : 0])
  scratch.writeUInt32LE(id, places[0])
  if (status) scratch.writeUInt16LE(status, places[1])
  if (headers.length) pairs(places[2], headers)
  if (body?.length) blob(places[3], body)
  return finish(HTTP_RESP_CALL)
}

/** ExtraInfo.Req for a variable of the gateway */
export function askVariable(name: string): Buffer {
  begin()
  const [kindAt, infoAt] = table(4, [1, 4])
  scratch[kindAt] = 1
  const [nameAt] = table(infoAt, [4])
  text(nameAt, name)
  return finish(EXTRA_INFO)
}

function ask(kind: number): Buffer {
  begin()
  const [kindAt, infoAt] = table(4, [1, 4])
  scratch[kindAt] = kind
  table(infoAt, [])
  return finish(EXTRA_INFO)
}

/** ExtraInfo.Req for the body of the request */
export const ASK_REQUEST_BODY = ask(2)
/** ExtraInfo.Req for the body of the upstream's response */
export const ASK_RESPONSE_BODY = ask(3)

// ------------------------------------------------------------------------------------------------------------- frames

/** Cuts a stream into frames, in however many pieces it comes. */
export class Frames {
  private parts: Buffer[] = []
  private have = 0
  private need = 4

  /** Calls back with each frame that is complete. Its payload is only lent: it may be part of a larger buffer. */
  push(chunk: Buffer, each: (kind: number, payload: Buffer) => void): void {
    if (this.have > 0) {
      this.parts.push(chunk)
      this.have += chunk.length
      if (this.have < this.need) return
      chunk = Buffer.concat(this.parts)
      this.parts = []
      this.have = 0
    }
    let at = 0
    for (;;) {
      const left = chunk.length - at
      this.need = left < 4 ? 4 : 4 + ((chunk[at + 1] << 16) | (chunk[at + 2] << 8) | chunk[at + 3])
      if (left < this.need) break
      each(chunk[at], chunk.subarray(at + 4, at + this.need))
      at += this.need
    }
    if (at < chunk.length) {
      this.parts = [at === 0 ? chunk : chunk.subarray(at)]
      this.have = chunk.length - at
    }
  }
}
