/** One connection of the gateway: calls in, replies out, and questions in between. */

import type { Socket } from 'node:net'

import type { Chains } from './confs'
import { Ask, PostRequest, PostResponse, Request, Response } from './http'
import * as wire from './wire'

/** The gateway has gone, or the call is over. */
export class Closed extends Error {}

/** What connections share. */
export interface Context {
  readonly chains: Chains
  /** Send all headers with changed ones in an answer to a response call. */
  readonly allResponseHeaders: boolean
  readonly log: (message: string, error?: unknown) => void
}

/** Who waits for an answer to a question. */
interface Asker {
  resolve(answer: Buffer | null): void
  reject(error: Error): void
}

/** Serves a connection until the gateway closes it. */
export class Connection {
  private readonly frames = new wire.Frames()
  private readonly calls: [kind: number, payload: Buffer][] = []
  private readonly askers: Asker[] = []
  /** The number of the call under way. A question of an earlier one would be taken for a reply. */
  private turn = 0
  /** Whether a call is under way. */
  busy = false

  constructor(private readonly socket: Socket, private readonly context: Context) {
    socket.on('data', (chunk) => this.frames.push(chunk, (kind, payload) => this.arrived(kind, payload)))
    // a gateway that goes away says so by its end or by an error, which 'close' follows
    socket.on('error', () => undefined)
    socket.on('close', () => this.closed('the gateway has closed the connection'))
  }

  private closed(why: string): void {
    this.calls.length = 0
    for (const asker of this.askers.splice(0)) asker.reject(new Closed(why))
  }

  private arrived(kind: number, payload: Buffer): void {
    if (this.askers.length > 0) {
      this.answered(kind, payload)
    } else if (this.busy) {
      this.calls.push([kind, payload])
    } else {
      void this.work(kind, payload)
    }
  }

  private answered(kind: number, payload: Buffer): void {
    if (kind !== wire.EXTRA_INFO) {
      this.context.log(`a frame of type ${kind} came instead of an answer`)
      this.closed('no answer came')
      this.socket.destroy()
      return
    }
    const asker = this.askers.shift()
    try {
      asker?.resolve(wire.Table.root(payload).blob(0))
    } catch (error) {
      asker?.reject(error as Error)
    }
  }

  private async work(kind: number, payload: Buffer): Promise<void> {
    this.busy = true
    let next: [number, Buffer] | undefined = [kind, payload]
    while (next !== undefined) {
      const reply: Buffer | null = await this.answer(next[0], next[1])
      this.turn++
      if (reply !== null && !this.socket.destroyed) this.socket.write(reply)
      next = this.calls.shift()
    }
    this.busy = false
  }

  /** The reply to a frame; null if nobody waits for it any more. */
  private async answer(kind: number, payload: Buffer): Promise<Buffer | null> {
    try {
      switch (kind) {
        case wire.PREPARE_CONF:
          return await this.prepare(payload)
        case wire.HTTP_REQ_CALL:
          return await this.request(payload)
        case wire.HTTP_RESP_CALL:
          return await this.response(payload)
        default:
          this.context.log(`a frame of the unknown type ${kind} came`)
          return wire.error(wire.BAD_REQUEST)
      }
    } catch (error) {
      if (error instanceof Closed) return null
      if (error instanceof wire.BadBuffer) {
        this.context.log(`a frame of type ${kind} cannot be read`, error.message)
        return wire.error(wire.BAD_REQUEST)
      }
      this.context.log(`the call failed`, error)
      return wire.error(wire.SERVICE_UNAVAILABLE)
    }
  }

  private async prepare(payload: Buffer): Promise<Buffer> {
    const message = wire.Table.root(payload)
    const key = message.text(1) ?? ''
    const pairs = message.pairs(0)
    try {
      return wire.confToken(await this.context.chains.prepare(key, pairs))
    } catch (error) {
      this.context.log(`the configuration of ${key || 'a route'} cannot be prepared`, error)
      return wire.error(wire.BAD_REQUEST)
    }
  }

  private async request(payload: Buffer): Promise<Buffer> {
    const message = wire.Table.root(payload)
    const token = message.u32(6)
    const chain = this.context.chains.known(token) ?? (await this.context.chains.find(token))
    if (chain === undefined) return wire.error(wire.CONF_TOKEN_NOT_FOUND)
    const request = new Request(message, this.asking())
    const response = new Response()
    for (const { name, plugin, conf } of chain.steps) {
      if (plugin.filter === undefined) continue
      try {
        await plugin.filter(conf, request, response)
      } catch (error) {
        throw this.failed(name, request.id, error)
      }
      if (response.changed) return response.reply(request.id)
    }
    return request.reply()
  }

  private async response(payload: Buffer): Promise<Buffer> {
    const message = wire.Table.root(payload)
    const token = message.u32(3)
    const chain = this.context.chains.known(token) ?? (await this.context.chains.find(token))
    if (chain === undefined) return wire.error(wire.CONF_TOKEN_NOT_FOUND)
    const ask = this.asking()
    const request = new PostRequest(message, ask)
    const response = new PostResponse(message, ask)
    for (const { name, plugin, conf } of chain.steps) {
      if (plugin.filterResponse === undefined) continue
      try {
        await plugin.filterResponse(conf, request, response)
      } catch (error) {
        throw this.failed(name, request.id, error)
      }
    }
    return response.reply(this.context.allResponseHeaders)
  }

  private failed(plugin: string, id: number, error: unknown): Error {
    if (error instanceof Closed || error instanceof wire.BadBuffer) return error
    return new Error(`plugin \`${plugin}\` failed in call ${id}`, { cause: error })
  }

  /** What asks the gateway during the call under way, and refuses afterwards. */
  private asking(): Ask {
    const turn = this.turn
    return (question) =>
      new Promise((resolve, reject) => {
        if (turn !== this.turn || this.socket.destroyed) {
          reject(new Closed('the call is over: the gateway cannot be asked any more'))
          return
        }
        this.askers.push({ resolve, reject })
        this.socket.write(question)
      })
  }
}
