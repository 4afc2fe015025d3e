/** The command line. */

import cluster from 'node:cluster'
import { parseArgs } from 'node:util'

import { Chains, LocalRegistry, Registry } from './confs'
import type { Context } from './connection'
import { load } from './plugins'
import { endWith, RemoteRegistry, supervise } from './processes'
import { Place, Server } from './server'

const USAGE = `usage: runner [options] PLUGIN...

Runs plugins written in JavaScript for an API gateway, where APISIX_LISTEN_ADDRESS says, until SIGTERM.
PLUGIN is a file, or a directory whose files are all loaded.

  --processes N            share the calls among N processes (default: 1)
  --socket PATH            listen here, whatever APISIX_LISTEN_ADDRESS says
  --response-headers all   send all headers with changed ones in an answer to a response call, for Apache APISIX,
                           which drops the others (default: changed)
  --help, --version`

interface Options {
  readonly places: string[]
  readonly processes: number
  readonly path: string
  readonly life: number
  readonly allResponseHeaders: boolean
}

/** Runs until a signal. Ends with 1 when it cannot start, with 2 when the command is wrong. */
export function main(): void {
  const options = read()
  // A plugin's timer or promise that nobody awaits shall not end the calls of all others.
  process.on('uncaughtException', (error) => log('a plugin threw outside of a call', error))
  process.on('unhandledRejection', (error) => log('a plugin rejected outside of a call', error))
  if (options.processes > 1 && cluster.isPrimary) {
    try {
      supervise(options.processes, options.life, options.path, log)
    } catch (error) {
      fail(1, `cannot listen on ${options.path}: ${(error as Error).message}`)
    }
    return
  }
  serve(options).catch((error) => {
    log('cannot start', error)
    process.exit(1)
  })
}

async function serve(options: Options): Promise<void> {
  const plugins = await load(options.places)
  const bind = cluster.isWorker ? process.env.PORTCULLIS_RUNNER_BIND : undefined
  const registry: Registry = bind === undefined ? new LocalRegistry(options.life) : new RemoteRegistry()
  const chains = new Chains(plugins, registry)
  const context: Context = { chains, allResponseHeaders: options.allResponseHeaders, log }
  const server = new Server(context)
  if (bind === undefined) {
    const place = new Place(options.path)
    place.clear()
    await server.listen(place.bound)
    place.show()
    endWith(server, () => place.leave())
  } else {
    endWith(server, () => undefined)
    await server.listen(bind)
  }
  console.log(`listening on unix:${options.path} with plugins: ${[...plugins.keys()].sort().join(', ') || 'none'}`)
}

function read(): Options {
  let given
  try {
    given = parseArgs({
      allowPositionals: true,
      options: {
        processes: { type: 'string', default: '1' },
        socket: { type: 'string' },
        'response-headers': { type: 'string', default: 'changed' },
        help: { type: 'boolean' },
        version: { type: 'boolean' },
      },
    })
  } catch (error) {
    return fail(2, `${(error as Error).message}\n${USAGE}`)
  }
  const { values, positionals } = given
  if (values.help) {
    console.log(USAGE)
    process.exit(0)
  }
  if (values.version) {
    console.log(require('../../package.json').version)
    process.exit(0)
  }
  const processes = Number(values.processes)
  if (!Number.isInteger(processes) || processes < 1) return fail(2, '--processes is a number from 1')
  const headers = values['response-headers']
  if (headers !== 'all' && headers !== 'changed') return fail(2, '--response-headers is all or changed')
  const path = values.socket ?? (process.env.APISIX_LISTEN_ADDRESS ?? '').replace(/^unix:/, '')
  if (path === '') {
    return fail(2, 'set APISIX_LISTEN_ADDRESS=unix:/path/of/the.sock, as the gateway does, or give --socket')
  }
  const life = Number(process.env.APISIX_CONF_EXPIRE_TIME || 3600)
  if (!(life > 0)) return fail(2, 'APISIX_CONF_EXPIRE_TIME is no number of seconds')
  return { places: positionals, processes, path, life, allResponseHeaders: headers === 'all' }
}

function fail(code: number, message: string): never {
  console.error(`runner: ${message}`)
  process.exit(code)
}

function log(message: string, error?: unknown): void {
  if (error === undefined) console.error(`runner: ${message}`)
  else console.error(`runner: ${message}:`, error)
}
