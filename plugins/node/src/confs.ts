/** The configurations that the gateway has prepared, by their tokens. */

import { randomInt } from 'node:crypto'

import type { Plugin, Plugins } from './plugins'
import type { Pair } from './wire'

/** The gateway renews what it knows before it is this old; a call may be on its way at that moment. */
const GRACE = 1.2

/** The texts of a route's plugins, as the gateway sent them. */
export interface Conf {
  readonly token: number
  readonly pairs: readonly Pair[]
  /** When it is forgotten, in milliseconds since 1970. */
  expires: number
}

/** Where tokens come from: this process, or the process that has started several of them. */
export interface Registry {
  assign(key: string, pairs: readonly Pair[]): Promise<Conf>
  find(token: number): Promise<Conf | undefined>
}

/**
 * Gives tokens. A token says nothing about its number: after a restart an old one finds nothing, rather than the
 * configuration of another route.
 */
export class LocalRegistry implements Registry {
  private last = randomInt(1, 2 ** 31)
  private readonly byToken = new Map<number, Conf>()
  private readonly byKey = new Map<string, number>()

  /** @param life how many seconds the gateway uses a token */
  constructor(private readonly life: number, private readonly clock: () => number = Date.now) {}

  /** The same key with the same texts gives the same token, which lives anew. */
  async assign(key: string, pairs: readonly Pair[]): Promise<Conf> {
    const now = this.clock()
    this.forget(now)
    const known = JSON.stringify([key, pairs])
    const token = key === '' ? undefined : this.byKey.get(known)
    const expires = now + this.life * GRACE * 1000
    const old = token === undefined ? undefined : this.byToken.get(token)
    if (old !== undefined) {
      old.expires = expires
      return old
    }
    this.last = (this.last % 0xffffffff) + 1
    const conf = { token: this.last, pairs, expires }
    this.byToken.set(conf.token, conf)
    if (key !== '') this.byKey.set(known, conf.token)
    return conf
  }

  async find(token: number): Promise<Conf | undefined> {
    const conf = this.byToken.get(token)
    return conf !== undefined && conf.expires >= this.clock() ? conf : undefined
  }

  private forget(now: number): void {
    for (const [token, conf] of this.byToken) if (conf.expires < now) this.byToken.delete(token)
    for (const [known, token] of this.byKey) if (!this.byToken.has(token)) this.byKey.delete(known)
  }
}

/** One plugin of a route with its configuration. */
export interface Step {
  readonly name: string
  readonly plugin: Plugin
  readonly conf: unknown
}

/** The plugins of one route, in its order. */
export interface Chain {
  readonly steps: readonly Step[]
  expires: number
}

/** Chains by token, parsed once in this process. */
export class Chains {
  private readonly chains = new Map<number, Chain>()

  constructor(
    private readonly plugins: Plugins,
    private readonly registry: Registry,
    private readonly clock: () => number = Date.now,
  ) {}

  /** The token for a route's plugins. Rejects with what a plugin's `parseConf` throws, and for an unknown plugin. */
  async prepare(key: string, pairs: readonly Pair[]): Promise<number> {
    const steps = await this.parse(pairs)
    const conf = await this.registry.assign(key, pairs)
    this.forget()
    const known = this.chains.get(conf.token)
    if (known !== undefined) known.expires = conf.expires
    else this.chains.set(conf.token, { steps, expires: conf.expires })
    return conf.token
  }

  /** The chain of a token if this process knows it. */
  known(token: number): Chain | undefined {
    const chain = this.chains.get(token)
    return chain !== undefined && chain.expires >= this.clock() ? chain : undefined
  }

  /** The chain of a token that another process may have prepared, or renewed. */
  async find(token: number): Promise<Chain | undefined> {
    const conf = await this.registry.find(token)
    if (conf === undefined) return undefined
    const known = this.chains.get(token)
    const chain = { steps: known?.steps ?? (await this.parse(conf.pairs)), expires: conf.expires }
    this.chains.set(token, chain)
    return chain
  }

  private async parse(pairs: readonly Pair[]): Promise<Step[]> {
    const steps: Step[] = []
    for (const [name, value] of pairs) {
      const plugin = this.plugins.get(name)
      if (plugin === undefined) {
        throw new Error(`no plugin \`${name}\` is loaded; there are: ${[...this.plugins.keys()].sort().join(', ')}`)
      }
      const text = value ?? ''
      steps.push({ name, plugin, conf: plugin.parseConf === undefined ? text : await plugin.parseConf(text) })
    }
    return steps
  }

  private forget(): void {
    const now = this.clock()
    for (const [token, chain] of this.chains) if (chain.expires < now) this.chains.delete(token)
  }
}
