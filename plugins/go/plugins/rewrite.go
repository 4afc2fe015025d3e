package plugins

import (
	"encoding/json"
	"net/http"

	pkgHTTP "github.com/apache/apisix-go-plugin-runner/pkg/http"
	"github.com/apache/apisix-go-plugin-runner/pkg/plugin"
)

// Rewrite changes what the upstream gets.
type Rewrite struct {
	plugin.DefaultPlugin
}

// RewriteConf is the configuration of Rewrite; null deletes. v0.5.0 of the module cannot change the body.
type RewriteConf struct {
	Path        string             `json:"path"`
	Headers     map[string]*string `json:"headers"`
	Args        map[string]*string `json:"args"`
	RespHeaders map[string]string  `json:"resp_headers"`
}

func init() { register(&Rewrite{}) }

// Name is what routes call it.
func (*Rewrite) Name() string { return "rewrite" }

// ParseConf makes of a route's text what RequestFilter gets.
func (*Rewrite) ParseConf(in []byte) (interface{}, error) {
	conf := RewriteConf{}
	err := json.Unmarshal(in, &conf)
	return conf, err
}

// RequestFilter changes path, headers, arguments, and headers of the response that is to come.
func (*Rewrite) RequestFilter(conf interface{}, _ http.ResponseWriter, r pkgHTTP.Request) {
	c := conf.(RewriteConf)
	if c.Path != "" {
		r.SetPath([]byte(c.Path))
	}
	for name, value := range c.Headers {
		if value == nil {
			r.Header().Del(name)
		} else {
			r.Header().Set(name, *value)
		}
	}
	for name, value := range c.Args {
		if value == nil {
			r.Args().Del(name)
		} else {
			r.Args().Set(name, *value)
		}
	}
	for name, value := range c.RespHeaders {
		r.RespHeader().Set(name, value)
	}
}
