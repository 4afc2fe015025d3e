/**
 * The request and the response as plugins see them. Nothing is read from the gateway's message before a plugin asks for
 * it, and only what a plugin changed is sent back.
 */

import * as wire from './wire'
import { Pair, Table } from './wire'

/** Asks the gateway for more about the call under way; null for what does not exist. */
export type Ask = (question: Buffer) => Promise<Buffer | null>

/** Names and values, such as headers: a Map that remembers what was changed in it. */
export class Fields extends Map<string, string> {
  private changes: Map<string, Pair[]> | null = null

  /**
   * @param sent what the gateway sent
   * @param fold what makes two names the same
   */
  constructor(private readonly sent: readonly Pair[], private readonly fold: (name: string) => string) {
    super()
    for (const [name, value] of sent) super.set(name, value ?? '')
  }

  private spelling(name: string): string {
    if (super.has(name)) return name
    const folded = this.fold(name)
    if (super.has(folded)) return folded
    for (const known of super.keys()) if (this.fold(known) === folded) return known
    return name
  }

  /** The value of a name; the last one if there are several. */
  override get(name: string): string | undefined {
    return super.get(this.spelling(name))
  }

  override has(name: string): boolean {
    return super.has(this.spelling(name))
  }

  /** All values of a name. */
  getAll(name: string): string[] {
    const folded = this.fold(name)
    const pairs = this.changes?.get(folded) ?? this.sent.filter(([one]) => this.fold(one) === folded)
    return pairs.filter(([, value]) => value !== null || !this.changes?.has(folded)).map(([, value]) => value ?? '')
  }

  /** Sets a value in place of all of that name. */
  override set(name: string, value: string): this {
    // the constructor of Map calls this before there are fields
    if (this.fold === undefined) return super.set(name, value)
    const text = String(value)
    this.change(name, [[name, text]])
    return super.set(name, text)
  }

  /** Adds one more value of a name. */
  append(name: string, value: string): this {
    const values = [...this.getAll(name), String(value)]
    this.change(name, values.map((one): Pair => [name, one]))
    return super.set(name, String(value))
  }

  /** Takes a name away, with all its values. */
  override delete(name: string): boolean {
    const there = this.has(name)
    this.change(name, [[name, null]])
    return there
  }

  override clear(): void {
    for (const name of [...super.keys()]) this.delete(name)
  }

  private change(name: string, pairs: Pair[]): void {
    super.delete(this.spelling(name))
    this.changes ??= new Map()
    this.changes.set(this.fold(name), pairs)
  }

  /** What the gateway must be told. */
  changed(): Pair[] {
    return this.changes === null ? [] : [...this.changes.values()].flat()
  }
}

const caseless = (name: string): string => name.toLowerCase()
const exact = (name: string): string => name

function bytes(value: string | Uint8Array): Uint8Array {
  return typeof value === 'string' ? Buffer.from(value) : value
}

/** What both kinds of request can ask for. Answers are kept for the call. */
abstract class Asking {
  private vars: Map<string, Promise<Buffer | null>> | null = null
  private asked: Promise<Buffer | null> | null = null

  constructor(protected readonly message: Table, private readonly ask: Ask, private readonly question: Buffer) {}

  /** A variable of the gateway by its name without `$`, such as `remote_addr`; null if it has none. */
  async var(name: string): Promise<string | null> {
    this.vars ??= new Map()
    let answer = this.vars.get(name)
    if (answer === undefined) {
      answer = this.ask(wire.askVariable(name))
      this.vars.set(name, answer)
    }
    const value = await answer
    return value === null ? null : value.toString()
  }

  /** The body as bytes; empty if there is none. */
  async bodyBytes(): Promise<Buffer> {
    this.asked ??= this.ask(this.question)
    return (await this.asked) ?? Buffer.alloc(0)
  }

  /** The body as a text. */
  async body(): Promise<string> {
    return (await this.bodyBytes()).toString()
  }
}

/** The request of a client. */
export class Request extends Asking {
  /** The gateway's number of this call, for logs. */
  readonly id: number
  private newPath: string | null = null
  private newBody: Uint8Array | null = null
  private headerFields: Fields | null = null
  private argFields: Fields | null = null
  private respFields: Fields | null = null

  constructor(message: Table, ask: Ask) {
    super(message, ask, wire.ASK_REQUEST_BODY)
    this.id = message.u32(0)
  }

  /** The client's address: four or sixteen bytes. */
  get srcIp(): number[] {
    return [...(this.message.blob(1) ?? [])]
  }

  /** The client's address as a text. */
  get remoteAddr(): string {
    const address = this.message.blob(1) ?? Buffer.alloc(0)
    if (address.length !== 16) return [...address].join('.')
    const groups = Array.from({ length: 8 }, (_, index) => address.readUInt16BE(2 * index).toString(16))
    return groups.join(':')
  }

  /** `GET`, `POST` … */
  get method(): string {
    const method = wire.METHODS[this.message.u8(2)]
    if (method === undefined) throw new wire.BadBuffer('there is no such method')
    return method
  }

  /** The path, decoded and without the query. Assign to change it. */
  get path(): string {
    return this.newPath ?? this.message.text(3) ?? ''
  }

  set path(path: string) {
    if (!String(path).startsWith('/')) throw new TypeError('a path begins with /')
    this.newPath = String(path)
  }

  /** The headers, by names in any case. What is set or deleted reaches the upstream; `host` changes its host. */
  get headers(): Fields {
    return (this.headerFields ??= new Fields(this.message.pairs(5), caseless))
  }

  /** The arguments of the query. */
  get args(): Fields {
    return (this.argFields ??= new Fields(this.message.pairs(4), exact))
  }

  /** Headers that the client shall get with the upstream's response. */
  get respHeaders(): Fields {
    return (this.respFields ??= new Fields([], caseless))
  }

  /** Sets the body that the upstream gets. It cannot be made empty. */
  setBody(body: string | Uint8Array): void {
    this.newBody = bytes(body)
  }

  /** What has changed, as a frame. */
  reply(): Buffer {
    const headers = this.headerFields?.changed() ?? []
    const args = this.argFields?.changed() ?? []
    const respHeaders = this.respFields?.changed() ?? []
    const path = this.newPath === null || this.newPath === this.message.text(3) ? null : this.newPath
    if (path === null && !headers.length && !args.length && !respHeaders.length && !this.newBody?.length) {
      return wire.requestUnchanged(this.id)
    }
    return wire.rewrite(this.id, path, headers, args, respHeaders, this.newBody)
  }
}

/** The answer that a plugin gives instead of the upstream. As long as nothing is assigned, the request goes on. */
export class Response {
  /** 200 if another part is set and this is not. */
  status?: number
  /** Names and values: a Map, an object, or a list of pairs where names are repeated. */
  headers?: Map<string, string> | Iterable<[string, string]> | Record<string, string>
  body?: string | Uint8Array

  /** Whether a plugin has answered. */
  get changed(): boolean {
    return Boolean(this.status || this.headers || this.body)
  }

  /** The answer as a frame. */
  reply(id: number): Buffer {
    const given = this.headers ?? []
    const entries = Symbol.iterator in given ? [...given] : Object.entries(given)
    const headers = entries.map(([name, value]): Pair => [String(name), String(value)])
    return wire.stop(id, statusOf(this.status ?? 200), headers, this.body ? bytes(this.body) : null)
  }
}

function statusOf(status: number): number {
  if (!Number.isInteger(status) || status < 100 || status > 599) throw new RangeError(`${status} is no status`)
  return status
}

/** The request that a response belongs to. The gateway does not send it along: everything in it is asked for. */
export class PostRequest extends Asking {
  /** The gateway's number of this call, for logs. */
  readonly id: number

  constructor(message: Table, ask: Ask) {
    super(message, ask, wire.ASK_REQUEST_BODY)
    this.id = message.u32(0)
  }

  /** A header of the request. */
  header(name: string): Promise<string | null> {
    return this.var('http_' + name.toLowerCase().replaceAll('-', '_'))
  }
}

/** What the upstream has answered. */
export class PostResponse extends Asking {
  private newStatus = 0
  private newBody: Uint8Array | null = null
  private headerFields: Fields | null = null

  constructor(message: Table, ask: Ask) {
    super(message, ask, wire.ASK_RESPONSE_BODY)
  }

  /** Assign to change it. */
  get status(): number {
    return this.newStatus || this.message.u16(1)
  }

  set status(status: number) {
    this.newStatus = statusOf(status)
  }

  /** The headers, by names in any case. What is set or deleted reaches the client. */
  get headers(): Fields {
    return (this.headerFields ??= new Fields(this.message.pairs(2), caseless))
  }

  /** Sets the body that the client gets. It cannot be made empty. */
  setBody(body: string | Uint8Array): void {
    this.newBody = bytes(body)
  }

  /**
   * What has changed, as a frame.
   * @param all send all headers along with changed ones, for a gateway that drops the others
   */
  reply(all: boolean): Buffer {
    const id = this.message.u32(0)
    let headers = this.headerFields?.changed() ?? []
    if (!this.newStatus && !headers.length && !this.newBody?.length) return wire.responseUnchanged(id)
    if (all && headers.length) {
      const names = new Set([...this.headers.keys()].filter((name) => !FRAMING.has(name.toLowerCase())))
      headers = [...names].flatMap((name) => this.headers.getAll(name).map((value): Pair => [name, value]))
    }
    return wire.responseChanged(id, this.newStatus, headers, this.newBody)
  }
}

/** What belongs to the upstream's connection and to the body that may have been replaced. */
const FRAMING = new Set(['connection', 'content-length', 'keep-alive', 'transfer-encoding'])
