// An OpenID provider for the tests: the certified library `oidc-provider` with its development login pages, where any
// name with any password logs in. The first argument is JSON: clients, lifetimes. Prints {"port": …} when it serves.
// SIGUSR1 gives it a new signing key.
import http from 'node:http';
import { generateKeyPairSync } from 'node:crypto';
import Provider from 'oidc-provider';

const options = JSON.parse(process.argv[2] ?? '{}');

const key = (kid, alg) => {
  const pair = alg === 'ES256'
    ? generateKeyPairSync('ec', { namedCurve: 'P-256' })
    : generateKeyPairSync('rsa', { modulusLength: 2048 });
  return { ...pair.privateKey.export({ format: 'jwk' }), kid, alg, use: 'sig' };
};

const account = (ctx, id) => ({
  accountId: id,
  claims: async () => ({
    sub: id,
    name: `The user ${id}`,
    email: `${id}@example.org`,
    preferred_username: id,
    // More than one cookie holds.
    ...(id === 'big' ? { picture: 'x'.repeat(9000) } : {}),
  }),
});

const configuration = (keys) => ({
  clients: options.clients ?? [],
  jwks: { keys },
  cookies: { keys: ['a secret of the tests'] },
  findAccount: account,
  claims: { openid: ['sub'], profile: ['name', 'preferred_username', 'picture'], email: ['email'] },
  scopes: ['openid', 'offline_access', 'profile', 'email', 'read', 'write'],
  conformIdTokenClaims: false,
  pkce: { required: () => options.pkce === true },
  issueRefreshToken: async () => true,
  rotateRefreshToken: true,
  ttl: { AccessToken: options.lifetime ?? 3600, ClientCredentials: 3600, IdToken: 3600, Session: 86400, Grant: 86400, Interaction: 3600, RefreshToken: 86400, AuthorizationCode: 60 },
  clientAuthMethods: ['client_secret_basic', 'client_secret_post', 'client_secret_jwt', 'private_key_jwt', 'none'],
  features: {
    devInteractions: { enabled: true },
    introspection: { enabled: true, allowedPolicy: async () => true },
    revocation: { enabled: true, allowedPolicy: async () => true },
    clientCredentials: { enabled: true },
    pushedAuthorizationRequests: { enabled: true },
    dPoP: { enabled: true, nonceSecret: Buffer.alloc(32, 1), requireNonce: () => options.nonce === true },
    rpInitiatedLogout: { enabled: options.logout !== false },
    resourceIndicators: {
      enabled: true,
      getResourceServerInfo: async (ctx, resource) => ({
        scope: 'read write',
        audience: resource,
        accessTokenFormat: 'jwt',
        jwt: { sign: { alg: 'RS256' } },
      }),
    },
  },
});

const server = http.createServer();
server.listen(options.port ?? 0, '127.0.0.1', () => {
  const { port } = server.address();
  const issuer = `http://127.0.0.1:${port}`;
  let generation = 1;
  const serve = () => new Provider(issuer, configuration([key(`rsa-${generation}`, 'RS256'), key(`ec-${generation}`, 'ES256')]));
  let callback = serve().callback();
  const counts = {};
  process.on('SIGUSR1', () => {
    generation += 1;
    callback = serve().callback();
  });
  server.on('request', (request, response) => {
    const path = request.url.split('?')[0];
    if (path === '/counts') {
      response.end(JSON.stringify(counts));
      return;
    }
    counts[path] = (counts[path] ?? 0) + 1;
    callback(request, response);
  });
  console.log(JSON.stringify({ port }));
});
