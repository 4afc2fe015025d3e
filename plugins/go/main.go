// A runner with the plugins of the package plugins: its main function is all that Apache's module asks for.
package main

import (
	"flag"
	"fmt"
	"os"

	"github.com/apache/apisix-go-plugin-runner/pkg/runner"
	"go.uber.org/zap/zapcore"

	_ "portcullis-go-plugins/plugins"
)

func main() {
	level := zapcore.WarnLevel
	flag.Var(&level, "level", "least level of what is logged: debug, info, warn, error")
	flag.Usage = func() {
		fmt.Fprintln(flag.CommandLine.Output(), "usage: runner [-level LEVEL] run")
		flag.PrintDefaults()
	}
	flag.Parse()
	if flag.Arg(0) != "run" || flag.NArg() > 1 {
		flag.Usage()
		os.Exit(2)
	}
	runner.Run(runner.RunnerConfig{LogLevel: level})
}
