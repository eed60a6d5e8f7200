// Package java has the schema fields that the provider fills in for Java's SDK generator, which is not served as a module.
package java

type PackageInfo struct {
	BasePackage                     string            `json:"basePackage,omitempty"`
	BuildFiles                      string            `json:"buildFiles,omitempty"`
	Dependencies                    map[string]string `json:"dependencies,omitempty"`
	GradleNexusPublishPluginVersion string            `json:"gradleNexusPublishPluginVersion,omitempty"`
	GradleTest                      string            `json:"gradleTest,omitempty"`
	Packages                        map[string]string `json:"packages,omitempty"`
}
